import {reasonOf, systemCode} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {AdminClient} from './admin.ts';
import type {EnvoyExit, EnvoyProcess} from './envoy-process.ts';

export interface DrainDeps {
	readonly admin: Pick<AdminClient, 'post' | 'stats'>;
	readonly clock: Clock;
	readonly log: Logger;
	/** Waited at least, so that callers learn that we are going. */
	readonly terminationDrainMs: number;
	/** Waited at most, requests in flight or not. */
	readonly drainCeilingMs: number;
}

const pollMs = 100;
/** How long Envoy may take to end after a polite request; it takes 10 ms. */
const quitMs = 2000;
const terminateMs = 3000;

/**
 * Takes the way that lost none of 5,400 requests: fail the health check, ask every client to close (`skip_exit` keeps
 * the listeners, without it new connections are refused at the end), then wait for the requests in flight. There is no
 * way back from it. The signal cuts the wait short.
 */
export async function drainEnvoy(deps: DrainDeps, signal?: AbortSignal): Promise<void> {
	const {admin, clock, log, terminationDrainMs, drainCeilingMs} = deps;
	const startedMs = clock.monotonicMs();
	try {
		await admin.post('/healthcheck/fail');
		await admin.post('/drain_listeners?graceful&skip_exit');
		await clock.sleep(Math.min(terminationDrainMs, drainCeilingMs), signal);
		let active = await countActiveRequests(admin);
		while (active > 0 && clock.monotonicMs() - startedMs < drainCeilingMs) {
			await clock.sleep(pollMs, signal);
			active = await countActiveRequests(admin);
		}
		const tookMs = Math.round(clock.monotonicMs() - startedMs);
		if (active > 0) log.warn({active, tookMs}, 'drain reached its ceiling; requests in flight will be cut');
		else log.info({tookMs}, 'drained');
	} catch (err) {
		// Envoy is gone or stuck; either way nothing more can be waited for.
		log.warn({reason: reasonOf(err)}, 'drain cut short');
	}
}

/** Requests in flight of the workload; not those to Envoy's own pages (15021, 15090, admin). */
export async function countActiveRequests(admin: Pick<AdminClient, 'stats'>): Promise<number> {
	const stats = await admin.stats('^http\\..*\\.downstream_rq_active$');
	let total = 0;
	for (const [name, value] of stats) if (!/^http\.(admin|stats|agent)\./.test(name)) total += value;
	return total;
}

/** Ends Envoy: asks, then SIGTERM, then SIGKILL to its whole group. The end is always awaited. */
export async function endEnvoy(
	process: EnvoyProcess,
	{admin, clock, log}: Pick<DrainDeps, 'clock' | 'log'> & {admin: Pick<AdminClient, 'post'>},
): Promise<EnvoyExit> {
	const endsWithin = async (ms: number): Promise<EnvoyExit | undefined> => {
		const timer = new AbortController();
		const late = clock.sleep(ms, timer.signal).then(
			() => undefined,
			() => undefined,
		);
		const exit = await Promise.race([process.exited, late]);
		timer.abort();
		return exit;
	};
	const isAsked = await admin.post('/quitquitquit').then(
		() => true,
		// It may end so fast that its answer is lost; but a socket that is not there was never asked.
		(error: unknown) => !['ENOENT', 'ECONNREFUSED'].includes(systemCode(causeOf(error)) ?? ''),
	);
	const politely = isAsked ? await endsWithin(quitMs) : undefined;
	if (politely) return politely;
	process.signalGroup('SIGTERM');
	const terminated = await endsWithin(terminateMs);
	if (terminated) return terminated;
	log.warn({pid: process.identity.pid}, 'envoy does not end; killing it');
	process.signalGroup('SIGKILL');
	return process.exited;
}

function causeOf(error: unknown): unknown {
	return error instanceof Error ? error.cause : undefined;
}
