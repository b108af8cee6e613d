import {AgentError, reasonOf} from '../errors.ts';
import {AdminClient, type ServerInfo} from './admin.ts';
import {findRefusedFlag} from './arguments.ts';
import {checkBinary, checkVersion} from './binary.ts';
import {drainEnvoy} from './drain.ts';
import {EnvoyLog} from './envoy-log.ts';
import {monitorEnvoy, type Verdict} from './monitor.ts';
import {loadRecord, type ProcessRecord, saveRecord} from './record.ts';
import type {SupervisorDeps} from './supervisor.ts';
import type {LastExit, ProxyState, ProxyStatus} from './types.ts';
import {renderUnitStart, type UnitStart, writeUnitStart} from './unit-files.ts';

const hint = 'see why: systemctl status onramp-envoy, journalctl -u onramp-envoy -n 50';
/** What is outside our power (the binary, a disk) is looked at again this often. */
const waitMs = 1000;

/**
 * An Envoy that its own systemd unit runs. The agent says how it is to be started, and has one that was started
 * otherwise end, which the unit answers with a new start. It is known by its admin socket alone: units with users of
 * their own do not see each other's processes. It is never ended because the agent ends; the unit does that when all is
 * stopped, and `drain` comes before by the command `leave`.
 */
export class UnitEnvoy {
	readonly admin: AdminClient;
	readonly #deps: SupervisorDeps;
	readonly #stopping = new AbortController();
	readonly #envoyLog: EnvoyLog;
	readonly #countRestart: () => void;
	#record: ProcessRecord;
	#state: ProxyState = 'starting';
	#since: Date;
	#start: UnitStart | undefined;
	#version: string | undefined;
	/** When the one that is watched had been started, at the latest; monotonic. */
	#startedByMs: number | undefined;
	#isReady = false;
	readonly #startedMs: number;
	/** It was there before this agent. */
	#isAdopted = false;
	/** Asked to end by us, so its end is no crash. */
	#isReplaced = false;
	#nudge = new AbortController();
	#restarts = 0;
	#crashesMs: number[] = [];
	/** The next start waits, as too many Envoys have ended. */
	#isDelayed = false;
	#lastExit: LastExit | undefined;
	#drained: Promise<void> | undefined;

	constructor(deps: SupervisorDeps) {
		const {config, clock, metrics} = deps;
		this.#deps = deps;
		this.#since = clock.now();
		this.#startedMs = clock.monotonicMs();
		this.#envoyLog = new EnvoyLog(config, deps.log);
		this.#record = loadRecord(config.recordPath) ?? {binary: '', refusedFlags: []};
		this.admin = new AdminClient(config.adminSocketPath);
		this.#countRestart = metrics.counter('envoy_restarts_total', 'Unexpected ends of Envoy.');
		metrics.gaugeFrom('envoy_ready', 'Whether Envoy serves its configuration.', () => (this.#isReady ? 1 : 0));
	}

	status(): ProxyStatus {
		return {
			state: this.#state,
			pid: undefined,
			version: this.#version,
			adopted: this.#isAdopted,
			restarts: this.#restarts,
			lastExit: this.#lastExit,
			warnings: this.#envoyLog.warnings,
			since: this.#since,
		};
	}

	/** Rejects only when no waiting helps: this Envoy is too old. */
	async run(): Promise<void> {
		const {signal} = this.#stopping;
		this.#enter('starting', 'waits for onramp-envoy.service', hint);
		while (!signal.aborted) {
			// One that runs is watched, however it was started.
			if (this.#tryWrite() || (await this.#isAnswered())) await this.#watchOne();
			else await this.#deps.clock.sleep(waitMs, signal).catch(() => {}); // Stopped: the loop ends.
		}
	}

	lookNow(): void {
		if (this.#isReady) return;
		this.#nudge.abort();
		this.#nudge = new AbortController();
	}

	/** Once. After it Envoy takes no new work for good; only a new process does. */
	drain(): Promise<void> {
		this.#drained ??= this.#drain();
		return this.#drained;
	}

	stop(): void {
		this.#stopping.abort();
		this.#enter('stopped', 'the agent stops; envoy goes on');
	}

	async #drain(): Promise<void> {
		const {config, clock, log} = this.#deps;
		this.#enter('draining', 'envoy drains');
		await drainEnvoy({admin: this.admin, clock, log, ...config}, this.#stopping.signal);
	}

	/** Writes how Envoy is to be started; false when that has to be waited for, and the gate tells for what. */
	#tryWrite(): boolean {
		const {config, renderBootstrap, addresses, log} = this.#deps;
		const bootstrap = renderBootstrap(config);
		try {
			const binary = checkBinary(config.binaryPath);
			if (this.#record.binary !== binary) this.#saveRecord({binary, refusedFlags: []});
			this.#envoyLog.choose();
			const isDelayed = this.#isPastBudget();
			const start = renderUnitStart({
				config: {...config, logPath: this.#envoyLog.path},
				addresses,
				bootstrap,
				refusedFlags: this.#record.refusedFlags,
				delaySeconds: isDelayed ? Math.ceil(config.restartBackoffMaxMs / 1000) : 0,
			});
			writeUnitStart(config, start, bootstrap);
			this.#start = start;
			this.#isDelayed = isDelayed;
			return true;
		} catch (error) {
			const reason = error instanceof AgentError ? error.message : reasonOf(error);
			if (this.#state !== 'waiting') log.error({err: error}, 'envoy cannot be started; waiting for that to change');
			this.#enter('waiting', reason, error instanceof AgentError ? error.hint : undefined);
			return false;
		}
	}

	#isAnswered(): Promise<boolean> {
		return this.admin.ready().then(
			() => true,
			() => false,
		);
	}

	/** Until this Envoy has ended, or the agent does. */
	async #watchOne(): Promise<void> {
		const {clock, config} = this.#deps;
		const ended = new AbortController();
		const until = AbortSignal.any([this.#stopping.signal, ended.signal]);
		this.#startedByMs = undefined;
		await monitorEnvoy(
			{
				admin: this.admin,
				clock,
				nudge: () => this.#nudge.signal,
				onInfo: (info, askedMs) => {
					if (this.#isAnother(info, askedMs)) {
						this.#noteEnd();
						ended.abort();
						return;
					}
					this.#isAdopted ||= info.uptimeSeconds * 1000 > clock.monotonicMs() - this.#startedMs;
					const startedByMs = clock.monotonicMs() - (info.uptimeSeconds - 1) * 1000;
					this.#startedByMs = Math.min(startedByMs, this.#startedByMs ?? startedByMs);
					this.#version = info.version;
					checkVersion(config.binaryPath, info.version);
					const mismatch = this.#mismatch(info);
					if (mismatch !== undefined && !this.#isReplaced && !this.#drained) this.#replace(mismatch);
				},
				onVerdict: verdict => this.#take(verdict),
				onTick: () => {
					if (this.#isDelayed && !this.#isPastBudget()) this.#tryWrite();
					if (this.#isReady) void this.#envoyLog.rotate(() => void this.admin.post('/reopen_logs').catch(() => {}));
					else this.#dropRefusedFlag(ended);
				},
			},
			until,
		).catch((error: unknown) => {
			this.#enter('failed', reasonOf(error), error instanceof AgentError ? error.hint : undefined);
			throw error;
		});
	}

	/** A new process at the same socket: it was started later, or is no longer the one that was to go. */
	#isAnother(info: ServerInfo, askedMs: number): boolean {
		if (this.#isReplaced && this.#mismatch(info) === undefined) return true;
		// An uptime is a difference of two wall-clock times in whole seconds, so it is wrong by up to one either way.
		const startedAfterMs = askedMs - (info.uptimeSeconds + 1) * 1000;
		return this.#startedByMs !== undefined && startedAfterMs > this.#startedByMs;
	}

	/** Why this Envoy cannot be kept. */
	#mismatch({configPath, state}: ServerInfo): string | undefined {
		if (!this.#start) return undefined;
		if (configPath !== this.#start.bootstrapPath) return 'it was started otherwise than is wanted now';
		// Begun for an agent that has left, and it cannot be taken back.
		return state === 'DRAINING' ? 'it drains' : undefined;
	}

	#replace(reason: string): void {
		this.#isReplaced = true;
		this.#isReady = false;
		this.#enter('starting', 'envoy is started anew', hint);
		this.#deps.log.info({reason, version: this.#version}, 'ending envoy, so that its unit starts it anew');
		// Asked again with the next look if this is lost.
		this.admin.post('/quitquitquit').catch(() => {
			this.#isReplaced = false;
		});
	}

	#take(verdict: Verdict): void {
		const {log, gate} = this.#deps;
		if (this.#drained || this.#isReplaced || this.#stopping.signal.aborted) return;
		if (!verdict.isReady) {
			this.#isReady = false;
			if (this.#state === 'running') this.#enter('starting', verdict.reason);
			gate.close(verdict.reason, verdict.hint ?? hint);
			return;
		}
		if (!this.#isReady) log.info({version: this.#version, isAdopted: this.#isAdopted}, 'envoy ready');
		this.#isReady = true;
		this.#enter('running', 'envoy serves');
	}

	#noteEnd(): void {
		const {clock, log} = this.#deps;
		const wasReplaced = this.#isReplaced;
		this.#isReplaced = false;
		this.#isReady = false;
		this.#version = undefined;
		if (wasReplaced) return;
		this.#isAdopted = false;
		this.#restarts++;
		this.#countRestart();
		this.#lastExit = {code: undefined, signal: undefined, at: clock.now(), logTail: this.#envoyLog.tail()};
		this.#crashesMs.push(clock.monotonicMs());
		log.error({restarts: this.#restarts}, 'envoy has ended, and its unit has started it anew');
		this.#enter(this.#isPastBudget() ? 'failed' : 'backing-off', 'envoy has ended and is started anew', hint);
	}

	#isPastBudget(): boolean {
		const {clock, config} = this.#deps;
		const nowMs = clock.monotonicMs();
		this.#crashesMs = this.#crashesMs.filter(atMs => nowMs - atMs < config.crashWindowMs);
		return this.#crashesMs.length > config.crashBudget;
	}

	/** An Envoy that does not know one of the optional flags never opens its socket. */
	#dropRefusedFlag(ended: AbortController): void {
		if (this.#version !== undefined) return;
		const refused = findRefusedFlag(this.#envoyLog.tail());
		if (refused === undefined || this.#record.refusedFlags.includes(refused)) return;
		this.#deps.log.info({flag: refused}, 'envoy does not know an optional flag; it is started without');
		this.#saveRecord({...this.#record, refusedFlags: [...this.#record.refusedFlags, refused]});
		ended.abort();
	}

	#saveRecord(record: ProcessRecord): void {
		this.#record = record;
		try {
			saveRecord(this.#deps.config.recordPath, record);
		} catch (err) {
			// The next agent finds out again, at the price of a start.
			this.#deps.log.warn({err}, 'what envoy refuses could not be noted');
		}
	}

	#enter(state: ProxyState, reason: string, why?: string): void {
		if (this.#state !== state) this.#since = this.#deps.clock.now();
		this.#state = state;
		if (state === 'running') this.#deps.gate.open(reason);
		else this.#deps.gate.close(reason, why);
	}
}
