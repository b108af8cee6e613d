// Loaded by the agent itself; what makes rules is in processes of their own (step.ts), which end when they are done.
import {spawn} from 'node:child_process';
import {readFileSync} from 'node:fs';
import type {CaptureConfig, Endpoint} from '../config/types.ts';
import {AgentError} from '../errors.ts';
import type {Clock, Gate, Metrics, Readiness, Running} from '../lifecycle/index.ts';
import {type Monitor, startMonitor} from '../lifecycle/monitor.ts';
import {never} from '../lifecycle/running.ts';
import type {Logger} from '../log.ts';
import {hasChanged, type Look} from './look.ts';
import {captureMonitors} from './monitors.ts';
import type {RulesIn, StepReply, StepRequest} from './step.ts';

export interface CaptureKeeperDeps {
	readonly config: CaptureConfig;
	readonly controlPlane: readonly Endpoint[];
	/** Of this machine. */
	readonly address: string;
	/** Envoy outlives this agent, and so do the rules. */
	readonly isLeft: boolean;
	readonly readiness: Readiness;
	readonly gate: Gate;
	/** Returns when Envoy has finished its work; only then rules are taken away. */
	readonly drain: () => Promise<void>;
	readonly clock: Clock;
	readonly metrics: Metrics;
	readonly log: Logger;
	/** Has a step done; by a process of its own unless given. */
	readonly perform?: (request: StepRequest, signal: AbortSignal) => Promise<StepReply>;
	/** Tells of changes to rules; what the kernel says unless given. */
	readonly listen?: typeof startMonitor;
}

/**
 * - `waiting`: for the gates named in the gate's reason
 * - `in`: as planned
 * - `drifted`: in, and not as planned
 * - `bypassed`: taken out, as Envoy does not answer and `capture.on-agent-down` is `bypass`
 * - `failed`: not loaded, or undone; tried again later, or on `onramp retry`
 * - `out`: somebody has taken them away, and nobody but them puts them back
 * - `removed`, `left`: at the end
 */
export type CaptureState = 'waiting' | 'in' | 'drifted' | 'bypassed' | 'failed' | 'out' | 'removed' | 'left';

export interface CaptureStatus {
	readonly state: CaptureState;
	readonly since: Date;
	readonly backend: string | undefined;
	readonly rules: number | undefined;
	readonly plan: string | undefined;
	readonly notes: readonly string[];
	readonly problems: readonly string[];
	readonly repairs: number;
	readonly lastError: {readonly code: string; readonly message: string} | undefined;
}

export interface CaptureKeeper extends Running {
	status(): CaptureStatus;
	/** Tries again now what has failed. */
	retryNow(): void;
}

/** What the rules lead to must be there. Not `registration`: what leaves this machine does not depend on it. */
const needed: readonly string[] = ['identity', 'configuration', 'proxy', 'dns'];
const trialMs = 60_000;
/** While the kernel tells of changes, a look costs nothing; one without being told takes some programs, a whole check a process of our own. */
const lookEveryMs = 2000;
const lookUntoldEveryMs = 60_000;
const checkEveryMs = 300_000;
/** While they are not as planned although they ought to have been put right. */
const mendEveryMs = 10_000;
/** An Envoy that is started anew is back within half of this. */
const goneForMs = 3000;
const retryMs = {first: 2000, most: 60_000};
/** A change by somebody else is over by then. */
const [mostRemovals, busyMs] = [20, 500];
/** Tried again only when somebody asks for it: each try would cut off what it cut off before. */
const isFinal: ReadonlySet<string> = new Set(['capture.rolled_back']);
const again = 'onramp join BUNDLE once more, or a restart of the agent, puts them in again';

/** @throws AgentError `capture.permission` when this process may not change rules; nothing has been touched then */
export function refuseWithoutNetAdmin(): void {
	const [, mask = '0'] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
	const netAdmin = 12n;
	if ((BigInt(`0x${mask}`) >> netAdmin) & 1n) return;
	throw new AgentError(
		'capture.permission',
		'capture traffic from the agent (capture.by-agent): this process has no CAP_NET_ADMIN',
		{
			hint: 'grant it (systemd: AmbientCapabilities=CAP_NET_ADMIN), or set capture.by-agent to false and let a unit run "onramp capture apply"',
		},
	);
}

/** Has the rules put in when Envoy and DNS are there, looks after them, and has them taken away on an orderly stop. */
export function startCaptureKeeper(deps: CaptureKeeperDeps): CaptureKeeper {
	return new Keeper(deps);
}

class Keeper implements CaptureKeeper {
	readonly finished = never;
	readonly #deps: CaptureKeeperDeps;
	readonly #perform: NonNullable<CaptureKeeperDeps['perform']>;
	readonly #stopping = new AbortController();
	readonly #running: Promise<void>;
	readonly #unsubscribe: () => void;
	#nudge = new AbortController();
	#state: CaptureState = 'waiting';
	#since: Date;
	#rules: RulesIn | undefined;
	#look: Look | undefined;
	#monitor: Monitor | undefined;
	/** The kernel has told of a change that was not looked at yet. */
	#isTold = false;
	#lookedAtMs = 0;
	#problems: readonly string[] = [];
	#repairs = 0;
	#lastError: CaptureStatus['lastError'];
	#retryInMs = retryMs.first;
	#checkedAtMs = 0;
	#goneSinceMs: number | undefined;
	#stopped: Promise<void> | undefined;

	constructor(deps: CaptureKeeperDeps) {
		this.#deps = deps;
		this.#perform = deps.perform ?? performInProcess;
		this.#since = deps.clock.now();
		deps.metrics.gaugeFrom('capture_as_planned', 'Whether the rules of traffic capture are in, as planned.', () =>
			this.#state === 'in' ? 1 : 0,
		);
		// Our own gate is among those that change.
		let missing = this.#missing().join();
		this.#unsubscribe = deps.readiness.onChange(() => {
			if (missing === this.#missing().join()) return;
			missing = this.#missing().join();
			this.#wake();
		});
		this.#running = this.#run();
	}

	status(): CaptureStatus {
		const {backend, count, plan, notes = []} = this.#rules ?? {};
		return {
			state: this.#state,
			since: this.#since,
			backend,
			rules: count,
			plan,
			notes,
			problems: this.#problems,
			repairs: this.#repairs,
			lastError: this.#lastError,
		};
	}

	retryNow(): void {
		if (this.#state !== 'in' && this.#state !== 'bypassed') this.#enter('waiting', 'trying again');
		this.#retryInMs = retryMs.first;
		this.#wake();
	}

	stop(): Promise<void> {
		this.#stopped ??= this.#stop();
		return this.#stopped;
	}

	async #run(): Promise<void> {
		const {signal} = this.#stopping;
		while (!signal.aborted) {
			// Taken before, so that what happens during the turn is not slept over.
			const nudge = this.#nudge.signal;
			const waitMs = await this.#turn();
			await this.#deps.clock.sleep(waitMs, AbortSignal.any([nudge, signal])).catch(() => {});
		}
	}

	/** @returns how long to wait before the next one, unless a gate opens or closes */
	async #turn(): Promise<number> {
		const missing = this.#missing();
		switch (this.#state) {
			case 'in':
			case 'drifted':
				await this.#lookAfter(missing);
				return lookEveryMs;
			case 'out':
				return checkEveryMs;
			case 'failed':
				if (isFinal.has(this.#lastError?.code ?? '')) return checkEveryMs;
		}
		if (missing.length > 0) {
			if (this.#state !== 'failed')
				this.#enter(this.#state, `rules are put in when all of this is ready: ${missing.join(', ')}`);
			return checkEveryMs;
		}
		if (await this.#apply()) {
			this.#retryInMs = retryMs.first;
			return lookEveryMs;
		}
		const waitMs = this.#retryInMs;
		this.#retryInMs = Math.min(waitMs * 2, retryMs.most);
		return waitMs;
	}

	async #apply(): Promise<boolean> {
		const {config, controlPlane, address, gate, clock} = this.#deps;
		gate.close('rules are being put in; new ones have to prove themselves first');
		await this.#do({kind: 'apply', config, controlPlane, address, trialMs, proxyUid: process.geteuid!()});
		this.#checkedAtMs = clock.monotonicMs();
		return this.status().state === 'in';
	}

	async #lookAfter(missing: readonly string[]): Promise<void> {
		const {config, clock, log} = this.#deps;
		const nowMs = clock.monotonicMs();
		this.#goneSinceMs = missing.includes('proxy') ? (this.#goneSinceMs ?? nowMs) : undefined;
		if (config.onAgentDown === 'bypass' && nowMs - (this.#goneSinceMs ?? nowMs) >= goneForMs) {
			log.warn({goneForMs}, 'envoy does not answer: traffic goes past it, as capture.on-agent-down says');
			await this.#do({kind: 'remove', config});
			return;
		}
		const isRepaired = config.onDrift === 'repair';
		const dueMs = this.#checkedAtMs + (isRepaired && this.#state === 'drifted' ? mendEveryMs : checkEveryMs);
		if (nowMs < dueMs && this.#look && !(await hasChanged(this.#look, this.#mustLook(nowMs)))) return;
		if (this.#stopping.signal.aborted) return;
		this.#checkedAtMs = nowMs;
		await this.#do({kind: 'check', config, isRepaired, known: this.#rules?.plan});
	}

	/** Of iptables-legacy the kernel tells nothing. */
	#mustLook(nowMs: number): boolean {
		const isHeard = this.#monitor?.isListening() === true && this.#rules?.backend !== 'iptables-legacy';
		if (isHeard && !this.#isTold && nowMs - this.#lookedAtMs < lookUntoldEveryMs) return false;
		[this.#isTold, this.#lookedAtMs] = [false, nowMs];
		return true;
	}

	/** Has it done, and keeps and tells what came of it. */
	async #do(request: StepRequest): Promise<void> {
		const reply = await this.#perform(request, this.#stopping.signal);
		if (this.#stopping.signal.aborted) return;
		const {log} = this.#deps;
		switch (reply.kind) {
			case 'in': {
				const {rules, isChanged, wasOnTrial} = reply;
				const {backend, count, notes, repaired} = rules;
				if (repaired.length > 0) {
					this.#repairs++;
					log.warn({problems: repaired}, 'the rules of capture had been changed; they were put right');
				} else if (this.#state !== 'in' || isChanged)
					log.info({backend, rules: count, isChanged, wasOnTrial, notes}, 'traffic is captured');
				this.#monitor ??= (this.#deps.listen ?? startMonitor)(
					captureMonitors,
					() => {
						this.#isTold = true;
					},
					this.#deps.clock,
					this.#stopping.signal,
				);
				[this.#rules, this.#look, this.#problems, this.#lastError] = [rules, rules.look, [], undefined];
				const how = wasOnTrial ? '; all that worked before works' : isChanged ? '' : ', found in place';
				this.#enter('in', `${count} rules with ${backend}${request.kind === 'apply' ? how : ''}`);
				return;
			}
			case 'drifted':
				if (this.#problems.join() !== reply.problems.join())
					log.warn({problems: reply.problems}, 'the rules of capture are not as planned');
				[this.#look, this.#problems] = [reply.look, reply.problems];
				return this.#enter(
					'drifted',
					`not as planned: ${reply.problems[0]}`,
					`onramp capture verify names all; ${again}`,
				);
			case 'out':
				log.warn('the rules of capture were taken away: traffic goes past envoy');
				return this.#enter('out', 'the rules were taken away (onramp capture remove)', again);
			case 'removed':
				return this.#enter('bypassed', 'traffic goes past Envoy, which does not answer');
			case 'failed':
				this.#lastError = {code: reply.code, message: reply.message};
				log.error({code: reply.code, hint: reply.hint}, reply.message);
				return this.#enter('failed', reply.message, reply.hint);
		}
	}

	async #stop(): Promise<void> {
		const {isLeft, drain, log} = this.#deps;
		this.#unsubscribe();
		this.#stopping.abort();
		this.#monitor?.stop();
		await this.#running;
		if (isLeft) return this.#enter('left', 'the agent stops; the rules stay');
		await drain();
		// Also what an earlier agent has put in: nobody is there any more to whom they lead.
		const reply = await this.#remove();
		if (reply.kind === 'failed') {
			log.error({code: reply.code, hint: reply.hint}, `the rules of capture are left behind: ${reply.message}`);
			return this.#enter('failed', reply.message, reply.hint);
		}
		log.info(reply, 'the rules of capture are taken away');
		this.#enter('removed', 'the agent stops; the rules were taken away');
	}

	/** Somebody else may be at it just now, the guardian of a trial for one. */
	async #remove(): Promise<StepReply> {
		const {config, clock} = this.#deps;
		for (let tries = 1; ; tries++) {
			const reply = await this.#perform({kind: 'remove', config}, new AbortController().signal);
			if (reply.kind !== 'failed' || reply.code !== 'capture.busy' || tries === mostRemovals) return reply;
			await clock.sleep(busyMs);
		}
	}

	#enter(state: CaptureState, reason: string, hint?: string): void {
		if (this.#state !== state) this.#since = this.#deps.clock.now();
		this.#state = state;
		if (state === 'in') this.#deps.gate.open(reason);
		else this.#deps.gate.close(reason, hint);
	}

	#missing(): readonly string[] {
		return this.#deps.readiness.states().flatMap(({name, isOpen}) => (needed.includes(name) && !isOpen ? [name] : []));
	}

	#wake(): void {
		this.#nudge.abort();
		this.#nudge = new AbortController();
	}
}

/** Past all waits of a step together. */
const stepWithinMs = 300_000;

/** This very program, for one step. On the signal it is asked to end, and ends what it has begun. */
function performInProcess(request: StepRequest, signal: AbortSignal): Promise<StepReply> {
	const failed = (message: string): StepReply => ({
		kind: 'failed',
		code: 'internal',
		message: `${request.kind} rules of capture: ${message}`,
		hint: undefined,
	});
	return new Promise(resolve => {
		const args = [...process.execArgv, process.argv[1]!, 'capture', 'step'];
		// A session of its own: Ctrl-C is for the agent, which ends it in order.
		const child = spawn(process.execPath, args, {
			stdio: ['pipe', 'pipe', 'pipe'],
			detached: true,
			timeout: stepWithinMs,
		});
		const out: Buffer[] = [];
		const err: Buffer[] = [];
		const end = () => child.kill('SIGTERM');
		signal.addEventListener('abort', end, {once: true});
		child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
		child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
		child.stdin.on('error', () => {}); // told by its end
		child.on('error', error => resolve(failed(error.message)));
		child.on('close', () => {
			signal.removeEventListener('abort', end);
			try {
				resolve(JSON.parse(Buffer.concat(out).toString()) as StepReply);
			} catch {
				resolve(failed(Buffer.concat(err).toString().trim() || 'it ended without an answer'));
			}
		});
		child.stdin.end(JSON.stringify(request));
		if (signal.aborted) end();
	});
}
