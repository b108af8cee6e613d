import {rmSync} from 'node:fs';
import {AgentError, reasonOf} from '../errors.ts';
import {Backoff} from '../lifecycle/index.ts';
import {AdminClient} from './admin.ts';
import {findLeftover, hashOf} from './adopt.ts';
import {findRefusedFlag, renderArguments} from './arguments.ts';
import {checkBinary, checkVersion} from './binary.ts';
import {drainEnvoy, endEnvoy} from './drain.ts';
import {EnvoyLog} from './envoy-log.ts';
import {adoptEnvoy, type EnvoyExit, type EnvoyProcess, spawnEnvoy} from './envoy-process.ts';
import {describeExit, hintForExit} from './exit-report.ts';
import {bootId} from './linux-process.ts';
import {errorLogPath} from './log-file.ts';
import {monitorEnvoy} from './monitor.ts';
import {prepareStart} from './preconditions.ts';
import {loadRecord, type ProcessRecord, saveRecord} from './record.ts';
import type {LastExit, ProxyDeps, ProxyState, ProxyStatus} from './types.ts';

export interface SupervisorDeps extends Omit<ProxyDeps, 'node' | 'xdsSocketPath' | 'statusAddress' | 'statusPort'> {
	/** The bootstrap as text. */
	readonly bootstrap: string;
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
 */
export class Supervisor {
	readonly admin: AdminClient;
	readonly #deps: SupervisorDeps;
	readonly #stopping = new AbortController();
	/** After all is done: an adopted process has to be watched until its end. */
	readonly #leaving = new AbortController();
	readonly #backoff: Backoff;
	readonly #countRestart: () => void;
	readonly #envoyLog: EnvoyLog;
	#state: ProxyState = 'starting';
	#since: Date;
	#process: EnvoyProcess | undefined;
	#version: string | undefined;
	#isReady = false;
	#nudge = new AbortController();
	#isDraining = false;
	#restarts = 0;
	#lastExit: LastExit | undefined;
	#crashesMs: number[] = [];
	#record: ProcessRecord = {binary: '', refusedFlags: []};
	#drained: Promise<void> | undefined;
	#running: Promise<void> | undefined;

	constructor(deps: SupervisorDeps) {
		const {config, clock, random, metrics} = deps;
		this.#deps = deps;
		this.#since = clock.now();
		this.#envoyLog = new EnvoyLog(config, deps.log);
		this.admin = new AdminClient(config.adminSocketPath);
		this.#backoff = new Backoff(
			{baseMs: config.restartBackoffBaseMs, maxMs: config.restartBackoffMaxMs, resetAfterMs: config.crashWindowMs},
			clock,
			random,
		);
		this.#countRestart = metrics.counter('envoy_restarts_total', 'Unexpected ends of Envoy.');
		metrics.gaugeFrom('envoy_ready', 'Whether Envoy serves its configuration.', () => (this.#isReady ? 1 : 0));
	}

	status(): ProxyStatus {
		return {
			state: this.#state,
			pid: this.#process?.identity.pid,
			version: this.#version,
			adopted: this.#process?.isAdopted ?? false,
			restarts: this.#restarts,
			lastExit: this.#lastExit,
			warnings: this.#process ? this.#envoyLog.warnings : [],
			since: this.#since,
		};
	}

	/** Finds Envoy or starts one, once. What only has to be waited for (a port, the binary, a disk) does not reject. */
	async begin(signal: AbortSignal): Promise<void> {
		this.#enter('starting', 'envoy starts');
		this.#record = loadRecord(this.#deps.config.recordPath) ?? this.#record;
		this.#process = await this.#adopt(signal);
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
		while (!signal.aborted) {
			let delayMs = waitMs; // While `waiting`; the reason stands in the gate.
			if (this.#process) {
				const exit = await this.#watch(this.#process);
				if (exit === undefined) return;
				delayMs = this.#noteExit(exit);
			}
			await clock.sleep(delayMs, signal).catch(() => {});
			// What was drained is about to be stopped; a new Envoy would take work again.
			if (!signal.aborted && !this.#isDraining) this.#process = await this.#trySpawn();
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

	/** Ends the supervision and, unless it is to be left for the next agent, Envoy. */
	async stop(): Promise<void> {
		const isLeft = this.#deps.config.onStop === 'leave';
		if (!isLeft && this.#process && this.#isReady) await this.drain();
		this.#stopping.abort();
		// It may be spawning at this moment; what it spawns is ended below.
		await this.#running?.catch(() => {});
		if (!isLeft && this.#process) {
			await endEnvoy(this.#process, {...this.#deps, admin: this.admin});
			// Envoy leaves it behind, and the next start would ask there who is at home.
			rmSync(this.#deps.config.adminSocketPath, {force: true});
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
		const {config, bootstrap, clock, log} = this.#deps;
		let binary: string;
		try {
			binary = checkBinary(config.binaryPath);
		} catch {
			binary = ''; // A running Envoy is found all the same, and ended as its file is gone; the spawn tells why.
		}
		const commandLines = this.#envoyLog.possiblePaths.map(logPath => this.#arguments(binary, logPath));
		const wanted = {...config, binary, commandLines, bootstrapHash: hashOf(bootstrap)};
		const leftover = await findLeftover(this.#record, wanted, {admin: this.admin, clock}, signal);
		if (leftover === undefined) return undefined;
		const process = adoptEnvoy(leftover.identity, clock, this.#leaving.signal);
		const {pid} = leftover.identity;
		if (leftover.mismatch === undefined) {
			log.info({pid, version: leftover.version}, 'envoy of an earlier agent taken over');
			this.#version = leftover.version;
			this.#envoyLog.adopt(leftover.identity.argv);
			this.#record = {binary, refusedFlags: this.#refusedFlags(binary)};
			this.#saveProcess(process);
			return process;
		}
		log.info({pid, reason: leftover.mismatch}, 'ending the envoy of an earlier agent');
		await endEnvoy(process, {
			...this.#deps,
			admin: new AdminClient(this.#record.process?.adminSocket ?? config.adminSocketPath),
		});
		return undefined;
	}

	/** Undefined when it has to be waited for; the gate says for what. */
	async #trySpawn(): Promise<EnvoyProcess | undefined> {
		const {config, bootstrap, log} = this.#deps;
		try {
			const binary = await prepareStart({config, bootstrap, admin: this.admin});
			this.#record = {binary, refusedFlags: this.#refusedFlags(binary)};
			this.#envoyLog.choose();
			const args = this.#arguments(binary);
			const process = await spawnEnvoy({
				binaryPath: config.binaryPath,
				args,
				errorLogPath: errorLogPath(this.#envoyLog.path),
			});
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

	/** Until the process ends by itself (how), or the supervision does (undefined). */
	async #watch(process: EnvoyProcess): Promise<EnvoyExit | undefined> {
		const {clock, config, log} = this.#deps;
		const {signal} = this.#stopping;
		const ended = new AbortController();
		const until = AbortSignal.any([signal, ended.signal]);
		const monitor = monitorEnvoy(
			{
				admin: this.admin,
				clock,
				nudge: () => this.#nudge.signal,
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
					else this.#deps.gate.close(verdict.reason, verdict.hint);
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
			return await Promise.race([process.exited, monitor.then(() => undefined)]);
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
		this.#lastExit = {...exit, at: clock.now(), logTail};
		this.#process = undefined;
		this.#version = undefined;
		this.#isReady = false;
		this.#saveProcess(undefined);
		const refused = findRefusedFlag(logTail);
		if (refused !== undefined && !this.#record.refusedFlags.includes(refused)) {
			log.info({flag: refused}, 'envoy does not know an optional flag; starting it without');
			this.#record = {...this.#record, refusedFlags: [...this.#record.refusedFlags, refused]};
			return 0;
		}
		this.#restarts++;
		this.#countRestart();
		const nowMs = clock.monotonicMs();
		this.#crashesMs = [...this.#crashesMs.filter(atMs => nowMs - atMs < config.crashWindowMs), nowMs];
		const reason = describeExit(this.#lastExit);
		const hint = hintForExit(exit, [config.binaryPath, ...this.#arguments(this.#record.binary)], this.#envoyLog.path);
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

	#arguments(binary: string, logPath = this.#envoyLog.path): string[] {
		const {config, addresses} = this.#deps;
		return renderArguments({config: {...config, logPath}, addresses, refusedFlags: this.#refusedFlags(binary)});
	}

	/** What one file refused says nothing about another at its place. */
	#refusedFlags(binary: string): string[] {
		return this.#record.binary === binary ? this.#record.refusedFlags : [];
	}

	#saveProcess(process: EnvoyProcess | undefined): void {
		const {config, bootstrap, clock, log} = this.#deps;
		this.#record = {
			...this.#record,
			process: process && {
				...process.identity,
				argv: [...process.identity.argv],
				bootId: bootId(),
				adminSocket: config.adminSocketPath,
				bootstrapHash: hashOf(bootstrap),
				startedAt: clock.now().toISOString(),
			},
		};
		try {
			saveRecord(config.recordPath, this.#record);
		} catch (err) {
			// The next agent finds Envoy by its command line then.
			log.warn({err}, 'record of the envoy process not written');
		}
	}
}
