// The sandbox as a process of its own, so that its CPU is not counted as the agent's. Obeys JSON lines on stdin,
// answers on stdout, and ends with its stdin. Started by scripts/bench.ts.
import {createInterface} from 'node:readline';
import {typeUrl} from '../../src/proto/types.ts';
import {type Sandbox, type SandboxOptions, startSandbox} from '../../src/sandbox/index.ts';

/** Push is over when all is acknowledged and nothing more has come for this long (a new listener leads to its routes). */
const quietMs = 300;
const pushDeadlineMs = 120_000;

const timedTypes: readonly string[] = [typeUrl.cluster, typeUrl.endpoint, typeUrl.listener, typeUrl.route];

/** What is pushed: the number of services, or new content for some, or all of it again. */
export interface PushRequest {
	readonly services?: number;
	/** So many services get new content. */
	readonly touched?: number;
	/** Everything is sent, not only what has changed. */
	readonly isFull?: boolean;
}

export interface PushResult {
	/** ms since the epoch, with fractions. */
	readonly firstSentAt: number;
	readonly lastAckAt: number;
	readonly bytes: number;
	readonly resources: number;
	readonly refusals: readonly string[];
}

export interface StartRequest {
	readonly sandbox: SandboxOptions;
	/** Port of the application that the VM's own service stands for. */
	readonly appPort: number;
	readonly bundleDirectory: string;
}

let sandbox: Sandbox;

const calls = {
	async start({sandbox: options, appPort, bundleDirectory}: StartRequest): Promise<{port: number}> {
		sandbox = await startSandbox(options);
		const [name, namespace] = ['bench', 'bench'];
		sandbox.addWorkloadGroup({name, namespace, serviceAccount: 'bench', labels: {app: name}, ports: {http: appPort}});
		const host = `${name}.${namespace}.svc.cluster.local`;
		sandbox.addService({host, namespace, port: 80, targetPort: appPort, protocol: 'http', selector: {app: name}});
		await sandbox.writeBundle(bundleDirectory, {group: name, namespace, tokenLifetimeMs: 24 * 3600_000});
		return {port: sandbox.port};
	},
	/** Before anybody is connected; nothing is measured. */
	async services({count}: {count: number}): Promise<void> {
		sandbox.addServices(count);
	},
	async certificateLifetime({ms}: {ms?: number}): Promise<void> {
		sandbox.setCertificateLifetimeMs(ms);
	},
	async issued(): Promise<number> {
		return sandbox.counts.issuedByToken + sandbox.counts.issuedByCertificate;
	},
	untilQuiet: async (): Promise<void> => {
		await observe(() => {}, false);
	},
	push: (request: PushRequest): Promise<PushResult> =>
		observe(() => {
			if (request.services !== undefined) sandbox.addServices(request.services);
			if (request.touched) sandbox.touchServices(request.touched);
			// Within the quiet time of the above, so that both go out as one.
			if (request.isFull) sandbox.touchServices(0);
		}, true),
};

/** Acts, and waits for the end of what that sets off. */
async function observe(act: () => void, isPushExpected: boolean): Promise<PushResult> {
	const epochMs = (at: number): number => performance.timeOrigin + at;
	const unanswered = new Map<string, string>();
	const refusals: string[] = [];
	let [firstAt, lastAckAt, bytes, resources] = [0, 0, 0, 0];
	let lastAt = performance.now();
	const stops = [
		sandbox.pushes.on(push => {
			lastAt = push.at;
			unanswered.set(push.typeUrl, push.nonce);
			bytes += push.bytes;
			resources += push.resources;
			if (timedTypes.includes(push.typeUrl)) firstAt ||= push.at;
		}),
		sandbox.acks.on(ack => {
			lastAt = ack.at;
			if (unanswered.get(ack.typeUrl) === ack.nonce) unanswered.delete(ack.typeUrl);
			if (ack.error) refusals.push(`${ack.typeUrl}: ${ack.error.message}`);
			else if (timedTypes.includes(ack.typeUrl)) lastAckAt = ack.at;
		}),
	];
	try {
		act();
		const deadline = performance.now() + pushDeadlineMs;
		const isOver = () =>
			(firstAt > 0 || !isPushExpected) && unanswered.size === 0 && performance.now() - lastAt > quietMs;
		while (!isOver()) {
			if (performance.now() > deadline)
				throw new Error(`no end of the push within ${pushDeadlineMs} ms, unanswered: ${[...unanswered.keys()]}`);
			await new Promise(resolve => setTimeout(resolve, 20));
		}
		return {firstSentAt: epochMs(firstAt), lastAckAt: epochMs(lastAckAt), bytes, resources, refusals};
	} finally {
		for (const stop of stops) stop();
	}
}

const lines = createInterface({input: process.stdin});
lines.on('line', async line => {
	const {id, call, input} = JSON.parse(line) as {id: number; call: keyof typeof calls; input: never};
	const answer = await calls[call](input).then(
		result => ({id, result}),
		error => ({id, error: error instanceof Error ? error.message : String(error)}),
	);
	console.log(JSON.stringify(answer));
});
lines.on('close', () => process.exit(0));
// Ctrl-C goes to the whole terminal; the bench decides when this ends.
process.on('SIGINT', () => {});
