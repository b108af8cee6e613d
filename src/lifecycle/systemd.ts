import {execFile} from 'node:child_process';
import {reasonOf, systemCode} from '../errors.ts';
import type {Logger} from '../log.ts';
import type {Clock} from './clock.ts';
import type {Readiness} from './readiness.ts';
import {never, type Running} from './running.ts';

/** One message to the service manager. */
export interface Notification {
	readonly isReady?: boolean;
	/** What `systemctl status` shows; one line, no secrets: every local user can read it. */
	readonly status?: string;
	/** Assignments that have no place of their own: `WATCHDOG=1`, `STOPPING=1`, `EXTEND_TIMEOUT_USEC=…`. */
	readonly assignments?: readonly string[];
}

export type SendNotification = (notification: Notification) => Promise<void>;

export interface NotifierDeps {
	/** NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID are read. */
	readonly env: Readonly<Record<string, string | undefined>>;
	readonly readiness: Readiness;
	/** What READY stands for, if not for all gates. */
	readonly isUp?: () => boolean;
	readonly clock: Clock;
	readonly log: Logger;
	readonly statusText: () => string;
	/** A watchdog ping is sent only while this is true; that the timer runs shows that the event loop does. */
	readonly isAlive?: () => boolean;
	readonly send?: SendNotification;
}

export interface Notifier extends Running {
	/** Says that an ordered stop has begun. Pings go on until `stop()`, as draining may take its time. */
	announceStop(): Promise<void>;
}

/** STATUS is for people: not more often than they can read. */
const statusEveryMs = 5000;
/** While starting or stopping, each message asks for four times the wait to the next one. */
const extendEveryMs = 15_000;
const extendUsec = 4 * extendEveryMs * 1000;

/**
 * Tells systemd READY when the agent is up (all gates are open) for the first time, STATUS as it changes, WATCHDOG while alive,
 * STOPPING at the end, and asks for more time while starting: an agent that waits for a token has not failed.
 * Without NOTIFY_SOCKET it does nothing.
 */
export function startSystemdNotifier(deps: NotifierDeps): Notifier {
	if (!deps.env['NOTIFY_SOCKET']) return {finished: never, stop: async () => {}, announceStop: async () => {}};
	return new SystemdNotifier(deps);
}

class SystemdNotifier implements Notifier {
	readonly finished = never;
	readonly #deps: NotifierDeps;
	readonly #send: SendNotification;
	readonly #stopping = new AbortController();
	readonly #unsubscribe: () => void;
	#phase: 'starting' | 'ready' | 'stopping' = 'starting';
	#queue: Promise<void> = Promise.resolve();
	#lastStatus = '';
	#isStatusDue = false;
	#hasWarned = false;

	constructor(deps: NotifierDeps) {
		this.#deps = deps;
		this.#send = deps.send ?? sendByProgram(deps.env);
		this.#unsubscribe = deps.readiness.onChange(() => this.#onChange());
		this.#onChange();
		this.#every(extendEveryMs, () => this.#extend());
		const watchdogMs = watchdogIntervalMs(deps.env);
		if (watchdogMs !== undefined) this.#every(watchdogMs, () => this.#ping());
	}

	async announceStop(): Promise<void> {
		if (this.#phase === 'stopping') return;
		this.#phase = 'stopping';
		await this.#notify({assignments: ['STOPPING=1', `EXTEND_TIMEOUT_USEC=${extendUsec}`]});
	}

	async stop(): Promise<void> {
		await this.announceStop();
		this.#stopping.abort();
		this.#unsubscribe();
		await this.#queue;
	}

	#onChange(): void {
		const {isUp, readiness} = this.#deps;
		if (this.#phase === 'starting' && (isUp?.() ?? readiness.isReady)) {
			this.#phase = 'ready';
			this.#lastStatus = this.#deps.statusText();
			this.#notify({isReady: true, status: this.#lastStatus});
		}
		this.#scheduleStatus();
	}

	/** Tells the present status now, and the latest of all that follow within the pause after it. */
	async #scheduleStatus(): Promise<void> {
		if (this.#isStatusDue) return;
		this.#isStatusDue = true;
		this.#tellStatus();
		try {
			await this.#deps.clock.sleep(statusEveryMs, this.#stopping.signal);
		} catch {
			return; // stopped
		}
		this.#isStatusDue = false;
		if (this.#deps.statusText() !== this.#lastStatus) this.#scheduleStatus();
	}

	#tellStatus(): void {
		const status = this.#deps.statusText();
		if (status === this.#lastStatus) return;
		this.#lastStatus = status;
		this.#notify({status});
	}

	#extend(): void {
		if (this.#phase !== 'ready') this.#notify({assignments: [`EXTEND_TIMEOUT_USEC=${extendUsec}`]});
	}

	#ping(): void {
		if (this.#deps.isAlive?.() ?? true) this.#notify({assignments: ['WATCHDOG=1']});
	}

	/** Acts at once and then after each interval, until stopped. */
	async #every(intervalMs: number, act: () => void): Promise<void> {
		const {signal} = this.#stopping;
		while (!signal.aborted) {
			act();
			try {
				await this.#deps.clock.sleep(intervalMs, signal);
			} catch {
				return; // stopped
			}
		}
	}

	/** One after the other: READY must not overtake the STATUS before it. */
	#notify(notification: Notification): Promise<void> {
		this.#queue = this.#queue.then(async () => {
			try {
				await this.#send(notification);
			} catch (error) {
				this.#warnOnce(error);
			}
		});
		return this.#queue;
	}

	#warnOnce(error: unknown): void {
		const level = this.#hasWarned ? 'debug' : 'warn';
		this.#hasWarned = true;
		const isMissing = systemCode(error) === 'ENOENT';
		const hint = isMissing ? 'install the program systemd-notify, or run the agent without Type=notify' : undefined;
		this.#deps.log[level]({reason: reasonOf(error), hint}, 'systemd could not be notified');
	}
}

/** Half the time systemd waits, or undefined if it does not, or waits for another process. */
function watchdogIntervalMs(env: NotifierDeps['env']): number | undefined {
	const usec = Number(env['WATCHDOG_USEC']);
	const pid = env['WATCHDOG_PID'];
	if (!(usec > 0) || (pid !== undefined && pid !== String(process.pid))) return undefined;
	return usec / 2000;
}

/** A notification takes 6 ms; one that takes this long hangs. */
const programTimeoutMs = 5000;

/**
 * Node has no Unix datagram sockets, so the program does it: through the npm module where that can say it, and by
 * hand for the rest. The unit needs NotifyAccess=all, as the message comes from a child.
 */
function sendByProgram(env: NotifierDeps['env']): SendNotification {
	return async ({isReady, status, assignments}) => {
		const line = status?.replace(/[\x00-\x1f\x7f]+/g, ' ');
		if (isReady || line !== undefined) await sendByModule(isReady, line);
		if (assignments && assignments.length > 0) await runProgram(assignments, env);
	};
}

async function sendByModule(ready: boolean | undefined, status: string | undefined): Promise<void> {
	const {default: notify} = await import('systemd-notify');
	const timeout = AbortSignal.timeout(programTimeoutMs);
	const expired = new Promise<never>((_, reject) => {
		timeout.addEventListener('abort', () =>
			reject(new Error(`systemd-notify gave no answer within ${programTimeoutMs} ms`)),
		);
	});
	try {
		// The module has no time limit of its own, and the next watchdog ping waits behind this.
		await Promise.race([notify({...(ready ? {ready} : {}), ...(status === undefined ? {} : {status})}), expired]);
	} catch (error) {
		// The module rejects with the program's text when the program failed.
		throw error instanceof Error ? error : new Error(String(error));
	}
}

function runProgram(assignments: readonly string[], env: NotifierDeps['env']): Promise<void> {
	return new Promise((resolve, reject) => {
		execFile('systemd-notify', [...assignments], {env, timeout: programTimeoutMs, killSignal: 'SIGKILL'}, error => {
			if (error) reject(error);
			else resolve();
		});
	});
}
