import {readFileSync} from 'node:fs';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {AdminClient} from './admin.ts';
import {checkVersion} from './binary.ts';
import {countActiveRequests} from './drain.ts';
import type {EnvoyExit} from './envoy-process.ts';
import {monitorEnvoy} from './monitor.ts';
import type {Slot} from './slot.ts';

/**
 * One Envoy takes over from another on the same ports: both bind with SO_REUSEPORT, the first drains once the second
 * serves as much. Until then nothing has changed for anybody, so a successor that is not up to it is ended and that
 * is all. (Envoy's own hot restart leaves the first without admin and without a second try.)
 */

/** One of the two, whoever runs it. */
export interface Party {
	/** Its pid or its unit, for the log. */
	readonly about: Readonly<Record<string, unknown>>;
	/** Never, where that cannot be seen. */
	readonly exited: Promise<EnvoyExit>;
	end(): Promise<unknown>;
}

export interface RaiseDeps {
	readonly clock: Clock;
	readonly log: Logger;
	/** Of the Envoy that serves now. */
	readonly currentAdmin: Pick<AdminClient, 'stats'>;
	/** How long the new one may take. */
	readonly timeoutMs: number;
	/** The bootstrap it was started with, where another Envoy may still answer at its socket. */
	readonly bootstrapPath?: string;
}

/**
 * Waits until a new Envoy serves as much as the current one. On failure it has been ended.
 * @returns its version
 * @throws AgentError `proxy.replacement_failed`; `signal.reason`
 */
export async function raiseSuccessor(
	successor: Party,
	slot: Slot,
	deps: RaiseDeps,
	signal: AbortSignal,
): Promise<string> {
	try {
		return await untilEqual(successor, slot, deps, signal);
	} catch (error) {
		await successor.end();
		throw error;
	}
}

async function untilEqual(
	successor: Party,
	{admin, config}: Slot,
	{clock, currentAdmin, timeoutMs, bootstrapPath}: RaiseDeps,
	signal: AbortSignal,
): Promise<string> {
	const done = new AbortController();
	const until = AbortSignal.any([signal, done.signal]);
	const deadlineMs = clock.monotonicMs() + timeoutMs;
	let version = '';
	let reason = 'it does not answer';
	const watch = async (): Promise<string> => {
		let isReady = false;
		let isWanted = bootstrapPath === undefined;
		const monitor = monitorEnvoy(
			{
				admin,
				clock,
				onInfo: info => {
					({version} = info);
					checkVersion(config.binaryPath, version);
					isWanted ||= info.configPath === bootstrapPath;
				},
				onVerdict: verdict => {
					isReady = verdict.isReady && isWanted;
					if (!verdict.isReady) ({reason} = verdict);
					else if (!isWanted) reason = 'another envoy answers in its place';
				},
			},
			until,
		);
		let failure: unknown;
		monitor.catch((error: unknown) => {
			failure = error;
		});
		for (;;) {
			if (failure) throw failed(reasonOf(failure));
			if (isReady) {
				const lack = await findLack(currentAdmin, admin);
				if (lack === undefined) return version;
				reason = lack;
			}
			if (clock.monotonicMs() > deadlineMs)
				throw failed(`not ready within ${Math.round(timeoutMs / 1000)} s: ${reason}`);
			await clock.sleep(50, until);
		}
	};
	try {
		return await Promise.race([
			watch(),
			successor.exited.then((exit: EnvoyExit) => {
				throw failed(`it ended (${exit.signal ?? `code ${exit.code}`})`);
			}),
		]);
	} finally {
		done.abort();
	}
}

const failed = (why: string): AgentError =>
	new AgentError('proxy.replacement_failed', `replace envoy: ${why}`, {
		hint: "the old one goes on as before; see envoy's log, then: onramp proxy replace",
	});

const content = {
	listeners: 'listener_manager.total_listeners_active',
	clusters: 'cluster_manager.active_clusters',
} as const;

/** What the new one has less of, or undefined. An old one that does not answer has nothing to compare with. */
async function findLack(
	current: Pick<AdminClient, 'stats'>,
	next: Pick<AdminClient, 'stats'>,
): Promise<string | undefined> {
	const filter = `^(${Object.values(content).join('|').replaceAll('.', '\\.')})$`;
	try {
		const had = await current.stats(filter).catch(() => new Map<string, number>());
		const has = await next.stats(filter);
		for (const [what, name] of Object.entries(content)) {
			const [before, now] = [had.get(name) ?? 0, has.get(name) ?? 0];
			if (now < before) return `it has ${now} ${what}, the old one ${before}`;
		}
		return undefined;
	} catch (error) {
		return reasonOf(error);
	}
}

/** A replacement that failed is tried again after this long, as what it lacked may have come. */
const replaceAgainMs = 300_000;

/** Tries again and again to replace an Envoy that is not the wanted one, for as long as it is not. */
export async function replaceUntilDone(
	replace: () => Promise<void>,
	isOutdated: () => boolean,
	{clock, log}: {readonly clock: Clock; readonly log: Logger},
	signal: AbortSignal,
): Promise<void> {
	while (isOutdated() && !signal.aborted) {
		await replace().catch((err: unknown) => {
			if (!signal.aborted) log.error({err, againInS: replaceAgainMs / 1000}, 'envoy is not replaced');
		});
		if (isOutdated()) await clock.sleep(replaceAgainMs, signal).catch(() => {}); // Stopped: the loop ends.
	}
}

export interface RetireDeps {
	readonly clock: Clock;
	readonly log: Logger;
	/** Waited at most for its connections. */
	readonly ceilingMs: number;
}

const pollMs = 500;
const closingMs = 250;

/**
 * Lets the old Envoy finish: it asks its clients to close, stops to listen after the drain time, and is ended when its
 * last connection is gone or the ceiling is reached. `signal` ends it at once; `left` leaves it to the next agent.
 * @returns whether it has ended
 */
export async function retireEnvoy(
	old: Party,
	admin: AdminClient,
	{clock, log, ceilingMs}: RetireDeps,
	signal: AbortSignal,
	left: AbortSignal,
): Promise<boolean> {
	const {about} = old;
	const until = AbortSignal.any([signal, left]);
	const startedMs = clock.monotonicMs();
	const elapsedMs = () => clock.monotonicMs() - startedMs;
	let open = 0;
	if (isWaitingReset()) {
		log.warn(
			'a connection that waits to be accepted when the replaced envoy closes its listeners may be reset; sysctl -w net.ipv4.tcp_migrate_req=1 hands it over',
		);
	}
	try {
		// Without `skip_exit` it closes its listeners in the end, so that all new connections are the successor's.
		await admin.post('/drain_listeners?graceful');
		// Its own, which may be from other settings than ours. Until its workers have closed the listeners, it may have
		// nothing to do for a moment and still be given a connection in the next.
		await clock.sleep((await admin.serverInfo()).drainMs + closingMs, until);
		for (;;) {
			open = await countWork(admin);
			if (open === 0 || elapsedMs() > ceilingMs) break;
			await clock.sleep(pollMs, until);
		}
	} catch (error) {
		if (left.aborted) return false;
		if (!signal.aborted) log.warn({...about, reason: reasonOf(error)}, 'the replaced envoy does not answer any more');
	}
	await old.end();
	log.info({...about, afterMs: Math.round(elapsedMs()), cut: open}, 'the replaced envoy has ended');
	return true;
}

/** Whether the kernel could hand such a connection to the other Envoy (Linux 5.14), and may not. */
function isWaitingReset(): boolean {
	try {
		return readFileSync('/proc/sys/net/ipv4/tcp_migrate_req', 'latin1').trim() === '0';
	} catch {
		return false; // Hidden from us, or not there: nothing to be said.
	}
}

/** Connections of callers and of the applications, and requests in flight. */
async function countWork(admin: AdminClient): Promise<number> {
	const stats = await admin.stats('^(http|tcp)\\..*\\.downstream_cx_active$|^listener\\..*\\.downstream_cx_active$');
	let connections = 0;
	for (const [name, value] of stats)
		if (!/^http\.(admin|stats|agent)\.|^listener\.admin\./.test(name)) connections = Math.max(connections, value);
	return connections + (await countActiveRequests(admin));
}
