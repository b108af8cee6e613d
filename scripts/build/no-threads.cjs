// Stands for thread-stream in the bundle: pino needs it for transports, and the agent has none.
module.exports = class NoThreads {
	constructor() {
		throw new Error('log transports are not part of this bundle');
	}
};
