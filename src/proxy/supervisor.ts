import {existsSync, rmSync} from 'node:fs';
import type {ProxyConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {Backoff} from '../lifecycle/index.ts';
import {AdminClient} from './admin.ts';
import {findLeftover, hashOf, isRecorded, type Leftover} from './adopt.ts';
import {renderArguments} from './arguments.ts';
import {checkBinary, checkVersion} from './binary.ts';
import {drainEnvoy, endEnvoy} from './drain.ts';
import {EnvoyLog} from './envoy-log.ts';
import {adoptEnvoy, type EnvoyExit, type EnvoyProcess, spawnEnvoy} from './envoy-process.ts';
import {describeExit, hintForExit} from './exit-report.ts';
import {findByArguments, identify} from './linux-process.ts';
import {errorLogPath} from './log-file.ts';
import {monitorEnvoy, Nudge, type UnreadyVerdict} from './monitor.ts';
import {prepareStart} from './preconditions.ts';
import type {RecordedProcess} from './record.ts';
import {RecordKeeper} from './record-keeper.ts';
import {makeSlots, type Slot} from './slot.ts';
import {type Party, raiseSuccessor, replaceUntilDone, retireEnvoy} from './succession.ts';
import type {LastExit, ProxyDeps, ProxyState, ProxyStatus} from './types.ts';

export interface SupervisorDeps extends Omit<ProxyDeps, 'node' | 'xdsSocketPath' | 'statusAddress' | 'statusPort'> {
	/** The bootstrap as text, for an Envoy with these paths. */
	readonly renderBootstrap: (config: ProxyConfig) => string;
	/** Addresses of this machine, which decide Envoy's preferred IP version. */
	readonly addresses: readonly string[];
}

/** What is outside our power (a port, a file) is looked at again this often. */
const waitMs = 1000;

/**
 * Keeps one Envoy running. All changes of state go through `#enter`. The life of a process: found and adopted, or
 * spawned (`starting`); `running` once ready; when it ends by itself `backing-off`, or `failed` past the crash budget;
 * then spawned anew. `failed` is a name for people and gates, not an end: a new try is made every
 * `restartBackoffMaxMs`, as what made it crash (a configuration, memory) can pass.
 *
 * One that serves but is not what is wanted any more (another binary, another bootstrap) goes on until a successor
 * beside it serves as much; see `succession.ts`.
 */
export class Supervisor {
	readonly #deps: SupervisorDeps;
	readonly #stopping = new AbortController();
	/** After all is done: an adopted process has to be watched until its end. */
	readonly #leaving = new AbortController();
	/** Ends the one that was replaced, whatever connections it still has. */
	readonly #cutting = new AbortController();
	readonly #backoff: Backoff;
	readonly #countRestart: () => void;
	readonly #envoyLog: EnvoyLog;
	#state: ProxyState = 'starting';
	#since: Date;
	readonly #slots: readonly [Slot, Slot];
	#slot: Slot;
	#process: EnvoyProcess | undefined;
	/** Aborts when another process has taken its place. */
	#replaced = new AbortController();
	#replacing: Promise<void> | undefined;
	#retiring: {readonly process: EnvoyProcess; readonly done: Promise<void>} | undefined;
	/** Why the Envoy that serves is not the wanted one. */
	#outdated: string | undefined;
	#replaceProblem: string | undefined;
	#version: string | undefined;
	#isReady = false;
	readonly #nudge = new Nudge();
	#isDraining = false;
	#restarts = 0;
	#lastExit: LastExit | undefined;
	#crashesMs: number[] = [];
	readonly #records: RecordKeeper;
	#drained: Promise<void> | undefined;
	#running: Promise<void> | undefined;

	constructor(deps: SupervisorDeps) {
		const {config, clock, random, metrics} = deps;
		this.#deps = deps;
		this.#since = clock.now();
		this.#envoyLog = new EnvoyLog(config, deps.log);
		this.#records = new RecordKeeper({path: config.recordPath, clock, log: deps.log});
		this.#slots = makeSlots(config, deps.renderBootstrap);
		this.#slot = this.#slots[0];
		this.#backoff = new Backoff(
			{baseMs: config.restartBackoffBaseMs, maxMs: config.restartBackoffMaxMs, resetAfterMs: config.crashWindowMs},
			clock,
			random,
		);
		this.#countRestart = metrics.counter('envoy_restarts_total', 'Unexpected ends of Envoy.');
		metrics.gaugeFrom('envoy_ready', 'Whether Envoy serves its configuration.', () => (this.#isReady ? 1 : 0));
	}

	/** Of the Envoy that serves; another after a replacement. */
	get admin(): AdminClient {
		return this.#slot.admin;
	}

	status(): ProxyStatus {
		return {
			state: this.#state,
			pid: this.#process?.identity.pid,
			version: this.#version,
			adopted: this.#process?.isAdopted ?? false,
			restarts: this.#restarts,
			lastExit: this.#lastExit,
			warnings: this.#process ? [...this.#envoyLog.warnings, ...this.#replaceWarnings()] : [],
			retiring: this.#retiring?.process.identity.pid,
			since: this.#since,
		};
	}

	/** Finds Envoy or starts one, once. What only has to be waited for (a port, the binary, a disk) does not reject. */
	async begin(signal: AbortSignal): Promise<void> {
		this.#enter('starting', 'envoy starts');
		this.#records.load();
		this.#process = await this.#adopt(signal);
		await this.#findRest(signal);
		signal.throwIfAborted();
		this.#process ??= await this.#trySpawn();
	}

	/** Rejects only when no waiting helps: this Envoy is too old. */
	run(): Promise<void> {
		this.#running ??= this.#run();
		return this.#running;
	}

	async #run(): Promise<void> {
		const {clock} = this.#deps;
		const {signal} = this.#stopping;
		if (this.#outdated) void this.#replaceUntilDone();
		while (!signal.aborted) {
			let delayMs = waitMs; // While `waiting`; the reason stands in the gate.
			if (this.#process) {
				const watched = this.#process;
				const end = await this.#watch(watched);
				if (end === 'stopped') return;
				if (end === 'replaced' || watched !== this.#process) continue;
				delayMs = this.#noteExit(end);
			}
			// It may be about to take over anyway, and has the ports.
			await this.#replacing?.catch(() => {});
			if (this.#process) continue;
			await clock.sleep(delayMs, signal).catch(() => {});
			// What was drained is about to be stopped; a new Envoy would take work again.
			if (!signal.aborted && !this.#isDraining) this.#process = await this.#trySpawn();
		}
	}

	/**
	 * Lets a new Envoy take over from the one that serves, without a lost request.
	 * @throws AgentError `proxy.replacement_failed`: nothing has changed
	 */
	replace(): Promise<void> {
		this.#replacing ??= this.#replace().finally(() => {
			this.#replacing = undefined;
		});
		return this.#replacing;
	}

	#replaceUntilDone(): Promise<void> {
		const isOutdated = () => this.#outdated !== undefined && !this.#isDraining;
		return replaceUntilDone(() => this.replace(), isOutdated, this.#deps, this.#stopping.signal);
	}

	async #replace(): Promise<void> {
		const {config, clock, log} = this.#deps;
		const {signal} = this.#stopping;
		const refuse = (why: string) => new AgentError('proxy.replacement_failed', `replace envoy: ${why}`);
		await this.#retiring?.done;
		signal.throwIfAborted();
		const old = this.#process;
		if (!old || this.#isDraining) throw refuse('there is none that serves');
		const [from, to] = [this.#slot, this.#slots.find(slot => slot !== this.#slot)!];
		try {
			const binary = await prepareStart({...to, mayPortsBeTaken: true});
			const raise = async (): Promise<[EnvoyProcess, string]> => {
				const process = await this.#spawn(to, binary);
				log.info({pid: process.identity.pid, old: old.identity.pid, reason: this.#outdated}, 'envoy is being replaced');
				this.#records.save({successor: this.#records.describe(process, to)});
				const timeoutMs = config.replaceTimeoutMs;
				return [
					process,
					await raiseSuccessor(
						this.#partyOf(process, to),
						to,
						{clock, log, currentAdmin: from.admin, timeoutMs},
						signal,
					),
				];
			};
			const [process, version] = await raise().catch((error: unknown) => {
				if (signal.aborted || !this.#records.learnRefusedFlag(binary, this.#envoyLog.tail())) throw error;
				return raise();
			});
			if (this.#isDraining) {
				await endEnvoy(process, {...this.#deps, admin: to.admin}); // It would take work that nobody drains.
				throw refuse('there is none that serves');
			}
			this.#version = version;
			this.#records.noteBinary(binary);
			this.#slot = to;
			this.#process = process;
			this.#outdated = undefined;
			this.#replaceProblem = undefined;
			this.#saveProcess(process, this.#records.describe(old, from));
			this.#replaced.abort();
			this.#retire(old, from);
		} catch (error) {
			this.#records.save({successor: undefined});
			this.#replaceProblem = reasonOf(error);
			throw error;
		}
	}

	#retire(process: EnvoyProcess, slot: Slot): void {
		const {config, clock, log} = this.#deps;
		const deps = {clock, log, ceilingMs: config.replaceCeilingMs};
		const {signal: cut} = this.#cutting;
		const {signal: left} = this.#leaving;
		const done = retireEnvoy(this.#partyOf(process, slot), slot.admin, deps, cut, left).then(isEnded => {
			if (!isEnded) return;
			rmSync(slot.config.adminSocketPath, {force: true});
			this.#retiring = undefined;
			this.#records.save({retiring: undefined});
		});
		this.#retiring = {process, done};
	}

	#partyOf(process: EnvoyProcess, {admin}: Slot): Party {
		const {pid} = process.identity;
		return {about: {pid}, exited: process.exited, end: () => endEnvoy(process, {...this.#deps, admin})};
	}

	#replaceWarnings(): string[] {
		const problem = this.#replaceProblem === undefined ? '' : `; ${this.#replaceProblem}`;
		return this.#outdated ? [`this envoy is to be replaced: ${this.#outdated}${problem}`] : [];
	}

	lookNow(): void {
		if (!this.#isReady) this.#nudge.give();
	}

	/** Once. After it Envoy takes no new work for good; only a new process does. */
	drain(): Promise<void> {
		this.#drained ??= this.#drain();
		return this.#drained;
	}

	/** Ends the supervision and, unless it is to be left for the next agent, Envoy. */
	async stop(): Promise<void> {
		const isLeft = this.#deps.config.onStop === 'leave';
		if (!isLeft && this.#process && this.#isReady) await this.drain();
		this.#stopping.abort();
		// It may be spawning at this moment; what it spawns is ended below.
		await this.#running?.catch(() => {});
		// A replacement waits for the one before it.
		if (isLeft) this.#leaving.abort();
		else this.#cutting.abort();
		await this.#replacing?.catch(() => {});
		if (!isLeft) await this.#retiring?.done;
		if (!isLeft && this.#process) {
			await endEnvoy(this.#process, {...this.#deps, admin: this.admin});
			// Envoy leaves it behind, and the next start would ask there who is at home.
			rmSync(this.#slot.config.adminSocketPath, {force: true});
			this.#saveProcess(undefined);
			this.#process = undefined;
		}
		this.#process?.release();
		this.#leaving.abort();
		this.#enter('stopped', isLeft ? 'the agent stops; envoy goes on' : 'envoy was stopped');
	}

	async #drain(): Promise<void> {
		const {config, clock, log} = this.#deps;
		this.#isDraining = true;
		this.#enter('draining', 'envoy drains');
		if (this.#process) await drainEnvoy({admin: this.admin, clock, log, ...config});
	}

	async #adopt(signal: AbortSignal): Promise<EnvoyProcess | undefined> {
		const {config, clock, log} = this.#deps;
		let binary: string;
		try {
			binary = checkBinary(config.binaryPath);
		} catch {
			binary = ''; // A running Envoy is found all the same, and ended as its file is gone; the spawn tells why.
		}
		const [slot, leftover] = await this.#findLeftover(binary, signal);
		if (leftover === undefined) return undefined;
		const process = adoptEnvoy(leftover.identity, clock, this.#leaving.signal);
		const {pid} = leftover.identity;
		const {mismatch, version} = leftover;
		if (mismatch === undefined || leftover.isServing) {
			log.info({pid, version, outdated: mismatch}, 'envoy of an earlier agent taken over');
			this.#slot = slot;
			this.#version = version;
			this.#outdated = mismatch;
			this.#envoyLog.adopt(leftover.identity.argv);
			if (mismatch === undefined) this.#records.noteBinary(binary);
			this.#saveProcess(process, this.#records.current.retiring, mismatch && this.#records.current.process);
			return process;
		}
		log.info({pid, reason: mismatch}, 'ending the envoy of an earlier agent');
		await endEnvoy(process, {
			...this.#deps,
			admin: new AdminClient(this.#records.current.process?.adminSocket ?? config.adminSocketPath),
		});
		return undefined;
	}

	/** By record, which names its slot; without one, whoever runs with the paths of either. */
	async #findLeftover(binary: string, signal: AbortSignal): Promise<[Slot, Leftover | undefined]> {
		const {clock} = this.#deps;
		const [first, second] = this.#slots;
		const recorded = this.#records.current.process?.adminSocket;
		const order = recorded === second.config.adminSocketPath ? [second, first] : [first, second];
		for (const slot of order) {
			const {config, bootstrap, admin} = slot;
			const commandLines = this.#envoyLog.possiblePaths.map(logPath => this.#arguments(binary, slot, logPath));
			const wanted = {...config, binary, commandLines, bootstrapHash: hashOf(bootstrap)};
			const leftover = await findLeftover(this.#records.current, wanted, {admin, clock}, signal);
			if (leftover) return [slot, leftover];
		}
		return [first, undefined];
	}

	/** What an agent that died in the middle of a replacement has left: a successor that had not made it, an old one that was on its way out. */
	async #findRest(signal: AbortSignal): Promise<void> {
		const {clock, log} = this.#deps;
		const {successor, retiring} = this.#records.current;
		const spare = this.#slots.find(slot => slot !== this.#slot)!;
		const adopt = (recorded: RecordedProcess | undefined) => {
			const found = recorded && identify(recorded.pid);
			if (!found || !isRecorded(recorded, found)) return undefined;
			return found.pid === this.#process?.identity.pid ? undefined : adoptEnvoy(found, clock, this.#leaving.signal);
		};
		const old = adopt(retiring);
		if (old) {
			log.info({pid: old.identity.pid}, 'the replaced envoy of an earlier agent goes on draining');
			const itsSlot = this.#slots.find(slot => slot.config.adminSocketPath === retiring!.adminSocket) ?? spare;
			// The one that is started next, if none was found that serves, must not take its socket.
			if (itsSlot === this.#slot) this.#slot = spare;
			this.#retire(old, itsSlot);
			return;
		}
		// One that was killed between the spawn and the record is known by its bootstrap.
		const unrecorded = existsSync(spare.config.adminSocketPath)
			? findByArguments(this.#arguments(this.#records.current.binary, spare))[0]
			: undefined;
		const unrecordedProcess =
			unrecorded && unrecorded.pid !== this.#process?.identity.pid
				? adoptEnvoy(unrecorded, clock, this.#leaving.signal)
				: undefined;
		const young = adopt(successor) ?? unrecordedProcess;
		if (!young) return;
		log.info({pid: young.identity.pid}, 'ending the half-started envoy of an earlier agent');
		await endEnvoy(young, {...this.#deps, admin: spare.admin});
		this.#records.save({successor: undefined});
		signal.throwIfAborted();
	}

	/** Undefined when it has to be waited for; the gate says for what. */
	async #trySpawn(): Promise<EnvoyProcess | undefined> {
		const {log} = this.#deps;
		try {
			// One that was replaced has them until it ends, and does not mind.
			const binary = await prepareStart({...this.#slot, mayPortsBeTaken: this.#retiring !== undefined});
			this.#records.noteBinary(binary);
			const process = await this.#spawn(this.#slot, binary);
			this.#outdated = undefined;
			this.#saveProcess(process);
			// After `failed` the reason stays to be seen until Envoy has proved itself.
			if (this.#state !== 'failed') this.#enter('starting', 'envoy starts');
			log.info({pid: process.identity.pid}, 'envoy started');
			return process;
		} catch (error) {
			const reason = error instanceof AgentError ? error.message : reasonOf(error);
			if (this.#state !== 'waiting') log.error({err: error}, 'envoy cannot be started; waiting for that to change');
			this.#enter('waiting', reason, error instanceof AgentError ? error.hint : undefined);
			return undefined;
		}
	}

	#takeUnready({reason, hint, isSpent}: UnreadyVerdict): void {
		this.#deps.gate.close(reason, hint);
		if (!isSpent || this.#outdated !== undefined) return;
		this.#outdated = reason;
		void this.#replaceUntilDone();
	}

	async #spawn(slot: Slot, binary: string): Promise<EnvoyProcess> {
		this.#envoyLog.choose();
		return spawnEnvoy({
			binaryPath: slot.config.binaryPath,
			args: this.#arguments(binary, slot),
			errorLogPath: errorLogPath(this.#envoyLog.path),
		});
	}

	/** Until the process ends by itself (how), another has taken its place, or the supervision ends. */
	async #watch(process: EnvoyProcess): Promise<EnvoyExit | 'replaced' | 'stopped'> {
		const {clock, config, log} = this.#deps;
		const {signal} = this.#stopping;
		const ended = new AbortController();
		this.#replaced = new AbortController();
		const {signal: replaced} = this.#replaced;
		const until = AbortSignal.any([signal, ended.signal, replaced]);
		const monitor = monitorEnvoy(
			{
				admin: this.admin,
				clock,
				nudge: this.#nudge,
				isEndHeard: true,
				// Learnt from Envoy itself: asking the file beforehand would cost every start 40 ms.
				onInfo: ({version}) => {
					this.#version = version;
					checkVersion(config.binaryPath, version);
				},
				onVerdict: verdict => {
					if (this.#isDraining || until.aborted) return;
					if (verdict.isReady && !this.#isReady) {
						log.info({pid: process.identity.pid, version: this.#version}, 'envoy ready');
					}
					this.#isReady = verdict.isReady;
					if (verdict.isReady) this.#enter('running', 'envoy serves');
					else this.#takeUnready(verdict);
				},
				onTick: () => {
					// Not before it runs: until Envoy has set its handler, SIGUSR1 would end it.
					if (!this.#isReady) return;
					void this.#envoyLog.rotate(() => process.signal('SIGUSR1'));
				},
			},
			until,
		);
		try {
			// The monitor ends first only when it is told to, or with an Envoy that is too old.
			return await Promise.race([
				process.exited,
				monitor.then(() => (replaced.aborted ? ('replaced' as const) : ('stopped' as const))),
			]);
		} catch (error) {
			this.#enter('failed', reasonOf(error), error instanceof AgentError ? error.hint : undefined);
			throw error;
		} finally {
			ended.abort();
			await monitor.catch(() => {}); // Told by the race.
		}
	}

	/** Keeps what is known of the end, and returns how long to wait before the next start. */
	#noteExit(exit: EnvoyExit): number {
		const {config, clock, log} = this.#deps;
		const logTail = this.#envoyLog.tail();
		const {binary} = this.#records.current;
		this.#lastExit = {...exit, at: clock.now(), logTail};
		this.#process = undefined;
		this.#version = undefined;
		this.#isReady = false;
		this.#saveProcess(undefined);
		if (this.#records.learnRefusedFlag(binary, logTail)) {
			this.#records.noteBinary(binary);
			return 0;
		}
		this.#restarts++;
		this.#countRestart();
		const nowMs = clock.monotonicMs();
		this.#crashesMs = [...this.#crashesMs.filter(atMs => nowMs - atMs < config.crashWindowMs), nowMs];
		const reason = describeExit(this.#lastExit);
		const command = [config.binaryPath, ...this.#arguments(binary, this.#slot)];
		const hint = hintForExit(exit, command, this.#envoyLog.path);
		const isPastBudget = this.#crashesMs.length > config.crashBudget;
		const delayMs = isPastBudget ? config.restartBackoffMaxMs : this.#backoff.nextDelayMs();
		log.error({...exit, restarts: this.#restarts, restartInMs: delayMs, hint}, reason);
		const windowS = Math.round(config.crashWindowMs / 1000);
		this.#enter(
			this.#isDraining ? 'draining' : isPastBudget ? 'failed' : 'backing-off',
			isPastBudget ? `${reason} (${this.#crashesMs.length} times within ${windowS} s)` : reason,
			hint,
		);
		return delayMs;
	}

	#enter(state: ProxyState, reason: string, hint?: string): void {
		if (this.#state !== state) this.#since = this.#deps.clock.now();
		this.#state = state;
		if (state === 'running') {
			this.#deps.gate.open(reason);
			return;
		}
		this.#isReady &&= state === 'draining';
		this.#deps.gate.close(reason, hint);
	}

	#arguments(binary: string, {config}: Slot, logPath = this.#envoyLog.path): string[] {
		const {addresses} = this.#deps;
		return renderArguments({config: {...config, logPath}, addresses, refusedFlags: this.#records.refusedFlags(binary)});
	}

	/** @param known - as it was recorded by who started it, if that was with another bootstrap */
	#saveProcess(process: EnvoyProcess | undefined, retiring?: RecordedProcess, known?: RecordedProcess | ''): void {
		this.#records.save({
			process: process && (known || this.#records.describe(process, this.#slot)),
			successor: undefined,
			...(retiring && {retiring}),
		});
	}
}
