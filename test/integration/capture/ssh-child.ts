// Applies rules on trial that know nothing of an SSH daemon on the port given, which was reached before, and tells what came of it.
import {applyCapture, awaitTrial, type CaptureDeps, runProgram} from '../../../src/capture/index.ts';
import {loadFrom} from '../../../src/cli/load.ts';
import {parsePlainFlags} from '../../../src/cli/plain-run.ts';
import {systemClock} from '../../../src/lifecycle/clock.ts';

const [agentPath, number, destination, ...words] = process.argv.slice(2);
const port = Number(number);
const {config} = await loadFrom(parsePlainFlags(words)!);
const deps: CaptureDeps = {config: config.capture, clock: systemClock, run: runProgram};
const {signal} = new AbortController();
const {isOnTrial} = await applyCapture(deps, signal, {
	confirm: {
		confirmMs: 60_000,
		command: [process.execPath, agentPath!],
		probes: () => [
			{
				name: `SSH on port ${port} is reached from outside`,
				check: {kind: 'inbound', port},
				packet: {direction: 'in', protocol: 'tcp', destination: destination!, port, interface: 'eth0'},
			},
		],
	},
});
console.log(JSON.stringify({isOnTrial, undone: await awaitTrial(deps, signal, true)}));
