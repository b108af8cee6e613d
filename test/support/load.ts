// A steady stream of requests that does not slow down when answers are late, and what became of them.
import {Agent, request} from 'node:http';
import type {Echo} from '../../src/sandbox/echo-app.ts';

export interface LoadOptions {
	/** This machine, unless said. */
	readonly host?: string;
	readonly port: number;
	readonly perSecond: number;
	/** `new`: a connection for each request; `kept`: few, used again and again; `one`: a single one, which is never replaced. */
	readonly connections?: 'new' | 'kept' | 'one';
	readonly path?: string;
	/** Each one, with the times of performance.now() between which it was under way. */
	readonly onFailure?: (failure: {
		readonly startedMs: number;
		readonly endedMs: number;
		readonly reason: string;
	}) => void;
}

export interface LoadResult {
	readonly sent: number;
	readonly failed: number;
	/** With the time into the run, so that it can be found in the logs. */
	readonly firstFailure: string | undefined;
	/** Since the start, whether or not there was an answer. */
	readonly elapsedMs: number;
	/** At once without an answer, at most. */
	readonly mostInFlight: number;
	/** Longest time without a good answer. */
	readonly longestGapMs: number;
	/** Connections opened. */
	readonly connections: number;
	/** Of the caller's certificates, as the application was told; in order. */
	readonly callerHashes: readonly string[];
	/** Who was called, by the SPIFFE ID it was received as. */
	readonly ownIds: readonly string[];
}

export interface Load {
	/** So far. */
	result(): LoadResult;
	/** Sends nothing more, waits for what is under way. */
	stop(): Promise<LoadResult>;
}

const answerWithinMs = 5000;
/** Past this the machine, or what is tested, does not keep up, and more would only hide why. */
const mostPending = 1000;

/** Open loop: requests are due by the clock, whatever became of those before. */
export function startLoad({
	host,
	port,
	perSecond,
	connections = 'new',
	path = '/load',
	onFailure = () => {},
}: LoadOptions): Load {
	const agent = new Agent({keepAlive: connections !== 'new', maxSockets: connections === 'one' ? 1 : Infinity});
	const startedMs = performance.now();
	const pending = new Set<Promise<void>>();
	const callerHashes = new Set<string>();
	const ownIds = new Set<string>();
	let [sent, failed, opened, longestGapMs, mostInFlight] = [0, 0, 0, 0, 0];
	let lastGoodMs = startedMs;
	let firstFailure: string | undefined;
	let stoppedMs: number | undefined;

	const fail = (error: unknown, sentMs: number) => {
		failed++;
		const reason = error instanceof Error ? error.message : String(error);
		onFailure({startedMs: sentMs, endedMs: performance.now(), reason});
		firstFailure ??= `request ${sent} at ${Math.round(performance.now() - startedMs)} ms (${new Date().toISOString()}): ${reason}`;
	};
	const succeed = ({callerHash, ownId}: Echo) => {
		callerHashes.add(callerHash);
		ownIds.add(ownId);
		const nowMs = performance.now();
		longestGapMs = Math.max(longestGapMs, nowMs - lastGoodMs);
		lastGoodMs = nowMs;
	};
	const send = () => {
		sent++;
		const sentMs = performance.now();
		if (pending.size >= mostPending) {
			fail(new Error(`${pending.size} requests without an answer`), sentMs);
			return;
		}
		const one = ask({host, port, agent, path, onConnection: () => opened++})
			.then(succeed, error => fail(error, sentMs))
			.finally(() => pending.delete(one));
		pending.add(one);
		mostInFlight = Math.max(mostInFlight, pending.size);
	};
	const timer = setInterval(() => {
		const due = Math.floor(((performance.now() - startedMs) * perSecond) / 1000);
		while (sent < due) send();
	}, 5);
	const result = (): LoadResult => ({
		sent,
		failed,
		firstFailure,
		elapsedMs: (stoppedMs ?? performance.now()) - startedMs,
		mostInFlight,
		longestGapMs: Math.round(Math.max(longestGapMs, 0)),
		connections: opened,
		callerHashes: [...callerHashes],
		ownIds: [...ownIds],
	});
	return {
		result,
		stop: async () => {
			clearInterval(timer);
			stoppedMs = performance.now();
			await Promise.all(pending);
			agent.destroy();
			return result();
		},
	};
}

export interface AskOptions {
	readonly host?: string | undefined;
	readonly port: number;
	readonly agent?: Agent;
	readonly path?: string;
	readonly onConnection?: () => void;
}

/** One request to the echo application behind a port. @throws Error unless it answers 200, in full, in time */
export function ask({host = '127.0.0.1', port, agent, path = '/', onConnection}: AskOptions): Promise<Echo> {
	return new Promise((resolve, reject) => {
		const call = request({host, port, path, agent: agent ?? false, timeout: answerWithinMs}, response => {
			let body = '';
			response.setEncoding('utf8').on('data', (text: string) => {
				body += text;
			});
			response.once('error', reject);
			response.once('close', () => {
				if (!response.complete) reject(new Error(`answer cut off: ${body.slice(0, 200)}`));
			});
			response.once('end', () => {
				if (response.statusCode === 200) resolve(JSON.parse(body) as Echo);
				else reject(new Error(`HTTP ${response.statusCode}: ${body.slice(0, 200)}`));
			});
		});
		call.once('error', reject);
		call.once('timeout', () => call.destroy(new Error(`no answer within ${answerWithinMs} ms`)));
		call.once('socket', socket => {
			if (socket.connecting) onConnection?.();
		});
		call.end();
	});
}
