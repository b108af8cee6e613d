import {existsSync, rmSync} from 'node:fs';
import {AgentError, reasonOf} from '../errors.ts';
import {never} from '../lifecycle/index.ts';
import type {AdminClient, ServerInfo} from './admin.ts';
import {findRefusedFlag} from './arguments.ts';
import {checkBinary, checkVersion} from './binary.ts';
import {drainEnvoy} from './drain.ts';
import {EnvoyLog} from './envoy-log.ts';
import {monitorEnvoy, Nudge, type Verdict} from './monitor.ts';
import {loadRecord, type ProcessRecord, saveRecord} from './record.ts';
import {makeSlots, type Slot} from './slot.ts';
import {type Party, raiseSuccessor, replaceUntilDone, retireEnvoy} from './succession.ts';
import type {SupervisorDeps} from './supervisor.ts';
import type {LastExit, ProxyState, ProxyStatus} from './types.ts';
import {
	renderUnitStart,
	startMark,
	type UnitStart,
	unitOf,
	unitScriptPath,
	withdrawUnitStart,
	writeUnitStart,
} from './unit-files.ts';

const hint = "see why: systemctl status 'onramp-envoy@*', journalctl -u 'onramp-envoy@*' -n 50";
/** What is outside our power (the binary, a disk) is looked at again this often. */
const waitMs = 1000;
/**
 * Of an Envoy that an earlier agent has left. `planned` is one that is only being started, or cannot be; `leaving` one
 * that drains, or whose unit is not to start it again.
 */
const worth = {absent: 0, planned: 1, leaving: 2, outdated: 3, wanted: 4} as const;
/** One that is just being started has to be asked again, as it cannot hear yet. */
const quitWithinMs = 5000;
const quitAgainMs = 200;

/**
 * An Envoy that a systemd unit runs, one of two, of which the other only runs while it takes over or is on its way out.
 * The agent writes how an Envoy is to be started, which has its unit start it, and takes that away again, after which
 * the unit lets it end. It is known by its admin socket alone: units with users of their own do not see each other's
 * processes. It is never ended because the agent ends; the unit does that when all is stopped, and `drain` comes before
 * by the command `leave`.
 */
export class UnitEnvoy {
	readonly #deps: SupervisorDeps;
	readonly #slots: readonly [Slot, Slot];
	readonly #stopping = new AbortController();
	readonly #envoyLog: EnvoyLog;
	readonly #countRestart: () => void;
	/** The one that serves. */
	#slot: Slot;
	/** Aborts when the other has taken its place. */
	#replaced = new AbortController();
	#replacing: Promise<void> | undefined;
	#retiring: {readonly slot: Slot; readonly done: Promise<void>} | undefined;
	/** Why the Envoy that serves is not the wanted one. */
	#outdated: string | undefined;
	/** Why the one that is watched will not serve again. */
	#spent: string | undefined;
	#replaceProblem: string | undefined;
	#record: ProcessRecord;
	#state: ProxyState = 'starting';
	#since: Date;
	#start: UnitStart | undefined;
	#version: string | undefined;
	/** When the one that is watched had been started, at the latest; monotonic. */
	#startedByMs: number | undefined;
	#isReady = false;
	/** Of the slot that is watched, when it was looked at last. */
	#marked: {readonly name: Slot['name']; readonly mark: bigint | undefined} | undefined;
	/** Starts since one has answered. */
	#unanswered = 0;
	readonly #startedMs: number;
	/** It was there before this agent. */
	#isAdopted = false;
	readonly #nudge = new Nudge();
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
		this.#slots = makeSlots(config, deps.renderBootstrap);
		this.#slot = this.#slots[0];
		this.#countRestart = metrics.counter('envoy_restarts_total', 'Unexpected ends of Envoy.');
		metrics.gaugeFrom('envoy_ready', 'Whether Envoy serves its configuration.', () => (this.#isReady ? 1 : 0));
	}

	/** Of the Envoy that serves; another after a replacement. */
	get admin(): AdminClient {
		return this.#slot.admin;
	}

	status(): ProxyStatus {
		const problem = this.#replaceProblem === undefined ? '' : `; ${this.#replaceProblem}`;
		const outdated = this.#outdated ? [`this envoy is to be replaced: ${this.#outdated}${problem}`] : [];
		return {
			state: this.#state,
			pid: undefined,
			version: this.#version,
			adopted: this.#isAdopted,
			restarts: this.#restarts,
			lastExit: this.#lastExit,
			warnings: [...this.#envoyLog.warnings, ...outdated],
			retiring: this.#retiring && unitOf(this.#retiring.slot),
			since: this.#since,
		};
	}

	/** Rejects only when no waiting helps: this Envoy is too old. */
	async run(): Promise<void> {
		const {signal} = this.#stopping;
		this.#enter('starting', 'waits for its unit', hint);
		await this.#choose();
		while (!signal.aborted) {
			// One that runs is watched, however it was started.
			if (this.#tryWrite() || (await isAnswered(this.admin))) await this.#watchOne();
			else await this.#deps.clock.sleep(waitMs, signal).catch(() => {}); // Stopped: the loop ends.
		}
		await this.#replacing?.catch(() => {}); // It was given up, and has told.
		await this.#retiring?.done;
	}

	lookNow(): void {
		if (!this.#isReady) this.#nudge.give();
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

	/**
	 * Lets the other unit's Envoy take over from the one that serves, without a lost request.
	 * @throws AgentError `proxy.replacement_failed`: nothing has changed
	 */
	replace(): Promise<void> {
		this.#replacing ??= this.#replace().finally(() => {
			this.#replacing = undefined;
		});
		return this.#replacing;
	}

	async #drain(): Promise<void> {
		const {config, clock, log} = this.#deps;
		this.#enter('draining', 'envoy drains');
		await drainEnvoy({admin: this.admin, clock, log, ...config}, this.#stopping.signal);
	}

	/** Of two that an earlier agent has left the wanted one; the other is seen out. */
	async #choose(): Promise<void> {
		const seen = await Promise.all(
			this.#slots.map(async slot => ({
				slot,
				worth: this.#worthOf(slot, await slot.admin.serverInfo().catch(() => undefined)),
			})),
		);
		const [best, other] = seen.toSorted((one, another) => another.worth - one.worth) as [
			(typeof seen)[0],
			(typeof seen)[0],
		];
		// What leaves is not kept, even where it is all that answers: in a moment it closes its listeners.
		if (best.worth === worth.leaving && other.worth < worth.leaving) {
			this.#slot = other.slot;
			this.#retire(best.slot);
			return;
		}
		this.#slot = best.slot;
		if (other.worth > worth.planned) this.#retire(other.slot);
		else if (other.worth === worth.planned) this.#noteRetiring(other.slot, this.#end(other.slot));
	}

	#worthOf(slot: Slot, info: ServerInfo | undefined): number {
		const isPlanned = existsSync(unitScriptPath(slot));
		if (!info) return isPlanned ? worth.planned : worth.absent;
		if (info.state === 'DRAINING' || !isPlanned) return worth.leaving;
		return info.configPath === this.#render(slot).bootstrapPath ? worth.wanted : worth.outdated;
	}

	#render({config, bootstrap}: Slot, delaySeconds = 0): UnitStart {
		const {addresses} = this.#deps;
		this.#envoyLog.choose();
		return renderUnitStart({
			config: {...config, logPath: this.#envoyLog.path},
			addresses,
			bootstrap,
			refusedFlags: this.#record.refusedFlags,
			delaySeconds,
		});
	}

	/** Writes how Envoy is to be started; false when that has to be waited for, and the gate tells for what. */
	#tryWrite(): boolean {
		const {config, log} = this.#deps;
		try {
			this.#noteBinary();
			const isDelayed = this.#isPastBudget();
			const start = this.#render(this.#slot, isDelayed ? Math.ceil(config.restartBackoffMaxMs / 1000) : 0);
			writeUnitStart(this.#slot, start);
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

	/** What one file refused says nothing about another at its place. */
	#noteBinary(): void {
		const binary = checkBinary(this.#deps.config.binaryPath);
		if (this.#record.binary !== binary) this.#saveRecord({binary, refusedFlags: []});
	}

	/** Until this Envoy has ended, another has taken its place, or the agent ends. */
	async #watchOne(): Promise<void> {
		const {clock, config} = this.#deps;
		const ended = new AbortController();
		this.#replaced = new AbortController();
		const until = AbortSignal.any([this.#stopping.signal, ended.signal, this.#replaced.signal]);
		this.#startedByMs = undefined;
		this.#spent = undefined;
		await monitorEnvoy(
			{
				admin: this.admin,
				clock,
				nudge: this.#nudge,
				onInfo: (info, askedMs) => {
					this.#unanswered = 0;
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
					const wasOutdated = this.#outdated !== undefined;
					this.#outdated = this.#mismatch(info);
					if (this.#outdated !== undefined && !wasOutdated) void this.#replaceUntilDone();
				},
				onVerdict: verdict => this.#take(verdict),
				onTick: () => {
					if (this.#isDelayed && !this.#isPastBudget()) this.#tryWrite();
					if (this.#isReady) void this.#envoyLog.rotate(() => void this.admin.post('/reopen_logs').catch(() => {}));
					else if (this.#version === undefined && this.#learnRefusedFlag()) ended.abort();
					if (!until.aborted) this.#countStarts(ended);
				},
			},
			until,
		).catch((error: unknown) => {
			this.#enter('failed', reasonOf(error), error instanceof AgentError ? error.hint : undefined);
			throw error;
		});
	}

	/** A new process at the same socket: it was started later. */
	#isAnother(info: ServerInfo, askedMs: number): boolean {
		// An uptime is a difference of two wall-clock times in whole seconds, so it is wrong by up to one either way.
		const startedAfterMs = askedMs - (info.uptimeSeconds + 1) * 1000;
		return this.#startedByMs !== undefined && startedAfterMs > this.#startedByMs;
	}

	/** Why this Envoy cannot be kept. */
	#mismatch({configPath, state}: ServerInfo): string | undefined {
		if (!this.#start || this.#drained) return undefined;
		if (configPath !== this.#start.bootstrapPath) return 'it was started otherwise than is wanted now';
		// Begun for an agent that has left, and it cannot be taken back.
		return state === 'DRAINING' ? 'it drains' : this.#spent;
	}

	#replaceUntilDone(): Promise<void> {
		const isOutdated = () => this.#outdated !== undefined && !this.#drained;
		return replaceUntilDone(() => this.replace(), isOutdated, this.#deps, this.#stopping.signal);
	}

	async #replace(): Promise<void> {
		const {signal} = this.#stopping;
		await this.#retiring?.done;
		signal.throwIfAborted();
		this.#refuseIfDrained();
		const [from, to] = [this.#slot, this.#otherThan(this.#slot)];
		try {
			this.#noteBinary();
			const [start, version] = await this.#raise(to).catch((error: unknown) => {
				if (signal.aborted || !this.#learnRefusedFlag()) throw error;
				return this.#raise(to);
			});
			if (this.#drained) await this.#end(to); // The agent has left meanwhile, and it would take work.
			this.#refuseIfDrained();
			this.#slot = to;
			this.#start = start;
			this.#isDelayed = false;
			this.#version = version;
			this.#isAdopted = false;
			this.#outdated = undefined;
			this.#replaceProblem = undefined;
			this.#replaced.abort();
			this.#retire(from);
		} catch (error) {
			this.#replaceProblem = reasonOf(error);
			throw error;
		}
	}

	#refuseIfDrained(): void {
		if (this.#drained)
			throw new AgentError('proxy.replacement_failed', 'replace envoy: there is none that serves', {
				hint: 'onramp leaves the mesh; start it again',
			});
	}

	/** Has the other unit start its Envoy; what it was started with, and its version. */
	async #raise(to: Slot): Promise<[UnitStart, string]> {
		const {config, clock, log} = this.#deps;
		const start = this.#render(to);
		// The unit would not notice a script that is there already.
		withdrawUnitStart(to);
		writeUnitStart(to, start);
		const {bootstrapPath} = start;
		log.info({unit: unitOf(to), reason: this.#outdated}, 'envoy is being replaced');
		const deps = {clock, log, currentAdmin: this.admin, timeoutMs: config.replaceTimeoutMs, bootstrapPath};
		return [start, await raiseSuccessor(this.#partyOf(to), to, deps, this.#stopping.signal)];
	}

	#retire(slot: Slot): void {
		const {config, clock, log} = this.#deps;
		const deps = {clock, log, ceilingMs: config.replaceCeilingMs};
		// First of all: should it crash, or the machine, it is not started again.
		withdrawUnitStart(slot);
		const cut = new AbortController(); // Nobody is in such a hurry: systemd ends it with all the rest.
		const {signal: left} = this.#stopping;
		this.#noteRetiring(
			slot,
			retireEnvoy(this.#partyOf(slot), slot.admin, deps, cut.signal, left).then(() => {}),
		);
	}

	#noteRetiring(slot: Slot, ended: Promise<void>): void {
		const done = ended.then(() => {
			this.#retiring = undefined;
		});
		this.#retiring = {slot, done};
	}

	#partyOf(slot: Slot): Party {
		return {about: {unit: unitOf(slot)}, exited: never, end: () => this.#end(slot)};
	}

	/** Asks until it is gone, or was asked long enough: one that has hung is systemd's to end. */
	async #end(slot: Slot): Promise<void> {
		const {clock, log} = this.#deps;
		withdrawUnitStart(slot);
		const deadlineMs = clock.monotonicMs() + quitWithinMs;
		let wasThere = false;
		while (clock.monotonicMs() < deadlineMs) {
			const isThere = await isAnswered(slot.admin);
			if (isThere) await slot.admin.post('/quitquitquit').catch(() => {});
			else if (wasThere) {
				// Envoy leaves it behind.
				rmSync(slot.admin.socketPath, {force: true});
				return;
			}
			wasThere ||= isThere;
			await clock.sleep(quitAgainMs);
		}
		if (wasThere) log.warn({unit: unitOf(slot)}, 'envoy does not end; end it with: systemctl kill -s KILL the unit');
	}

	#otherThan(slot: Slot): Slot {
		return this.#slots.find(each => each !== slot)!;
	}

	#take(verdict: Verdict): void {
		const {log, gate} = this.#deps;
		if (this.#drained || this.#stopping.signal.aborted) return;
		if (!verdict.isReady) {
			this.#isReady = false;
			if (verdict.isSpent) this.#spent = verdict.reason;
			if (this.#state === 'running') this.#enter('starting', verdict.reason);
			gate.close(verdict.reason, verdict.hint ?? hint);
			return;
		}
		if (!this.#isReady) log.info({version: this.#version, isAdopted: this.#isAdopted}, 'envoy ready');
		this.#isReady = true;
		this.#enter('running', 'envoy serves');
	}

	/** One that is started again without having answered has ended, as far as can be told from here. */
	#countStarts(ended: AbortController): void {
		const {name, config} = this.#slot;
		const mark = startMark(config);
		if (mark === this.#marked?.mark && name === this.#marked?.name) return;
		const isFirst = this.#marked?.name !== name;
		this.#marked = {name, mark};
		if (isFirst) this.#unanswered = 0;
		else if (++this.#unanswered >= 2) {
			this.#unanswered = 1;
			this.#noteEnd();
			ended.abort();
		}
	}

	#noteEnd(): void {
		const {clock, log} = this.#deps;
		this.#isReady = false;
		this.#version = undefined;
		this.#isAdopted = false;
		this.#restarts++;
		this.#countRestart();
		this.#lastExit = {code: undefined, signal: undefined, at: clock.now(), logTail: this.#envoyLog.tailOfEnded()};
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

	/** Whether the log tells of an optional flag that this Envoy does not know; with it, it never opens its socket. */
	#learnRefusedFlag(): boolean {
		const refused = findRefusedFlag(this.#envoyLog.tail());
		if (refused === undefined || this.#record.refusedFlags.includes(refused)) return false;
		this.#deps.log.info({flag: refused}, 'envoy does not know an optional flag; it is started without');
		this.#saveRecord({...this.#record, refusedFlags: [...this.#record.refusedFlags, refused]});
		return true;
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

const isAnswered = (admin: AdminClient): Promise<boolean> =>
	admin.ready().then(
		() => true,
		() => false,
	);
