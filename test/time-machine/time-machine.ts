import {setTimeout as wait} from 'node:timers/promises';
import {ask} from '../support/load.ts';
import type {Sight} from './control-plane.ts';
import type {Ledger, Window} from './ledger.ts';
import type {Machine} from './machine.ts';
import type {Seen} from './seen.ts';
import type {World} from './world.ts';

const second = 1000;
const minute = 60 * second;

/** Time passes in jumps of this length. */
const strideMs = 30 * minute;
/** Real time between two jumps, for requests and whatever the jump has set off. */
const breathMs = 20;
/** Real time between two looks. */
const lookMs = 5;
/** A look wakes who sleeps, but is answered before what is due is begun; and what one does, another is told of. */
const enoughQuiet = 3;
/** Jumps while somebody waits before another try: shorter than the control plane keeps the entry of who has left. */
const nudgeMs = second;
/**
 * Real time between those: who waits for time to pass gets some, who is at work is not hurried. Processes start and
 * Envoys come back in real time, on a busy machine in a lot of it, and must not be late for the control plane's clock.
 */
const nudgeEveryMs = {quick: 25, slow: 2000};
/** Longer than the 10 s after which agents compare the wall clock with what is due, and istiod forgets who has left. */
const lingerMs = 13 * second;
/** All has to be well again within this, of its own time and of real time. */
const patience = {ownMs: 10 * minute, realMs: minute};

/** What the control plane does at present. */
export type Away = 'here' | 'gone' | 'silent' | 'refusing';

/** Something was not mended in time, or happened that must not. */
export class Unrecovered extends Error {}

/** Lets time pass in a world, and watches over it: after each jump all that has become due is done before the next. */
export class TimeMachine {
	readonly world: World;
	readonly ledger: Ledger;
	/** Time passed, by the clocks of the control plane. */
	passedMs = 0;
	away: Away = 'here';
	/** The VM's clock is so wrong that nothing is asked of it but to be well again once it is right. */
	isVmLost = false;
	readonly counts = {jumps: 0, renewals: 0, tokens: 0, expiries: 0, recoveries: 0};
	longestRecoveryMs = 0;
	/** What Envoys did not take. */
	refusals: readonly string[] = [];
	readonly #serials = new Map<string, string>();
	/** End of the latest certificate of each. */
	readonly #notAfter = new Map<string, number>();
	/** Certificates whose end was mended by a token. */
	readonly #unlocked = new Set<string>();
	#outOfLife: Window | undefined;

	constructor(world: World, ledger: Ledger) {
		this.world = world;
		this.ledger = ledger;
	}

	get machines(): readonly Machine[] {
		return [this.world.vm, this.world.cluster];
	}

	/** @throws Unrecovered */
	async advance(ms: number): Promise<void> {
		for (let left = ms; left > 0; left -= strideMs) {
			const fromMs = performance.now();
			this.#jump(Math.min(left, strideMs));
			await this.settle(fromMs);
			await wait(breathMs);
		}
	}

	/** Some seconds one after the other: as long as it may take until somebody looks at a wall clock again. */
	async linger(): Promise<void> {
		const fromMs = performance.now();
		for (let passedMs = 0; passedMs < lingerMs; passedMs += nudgeMs) {
			this.#jump(nudgeMs);
			const [, ...seen] = await Promise.all([
				this.world.controlPlane.look(),
				...this.machines.map(machine => (machine.isAsleep ? undefined : machine.look())),
			]);
			// What a step of a clock has put out of its life may be renewed before anybody looks again.
			if (!this.isInLife(seen)) this.#noteEndOfLife(fromMs);
			await wait(breathMs);
		}
	}

	/** Until everything is in order again that can be, and requests get through. @throws Unrecovered */
	async untilWell(): Promise<void> {
		const startedMs = performance.now();
		await this.settle(startedMs, true);
		this.counts.recoveries++;
		this.longestRecoveryMs = Math.max(this.longestRecoveryMs, performance.now() - startedMs);
	}

	/**
	 * Waits until nobody is at work: all that is due is done, and what should be connected is. Time passes only for
	 * those who wait for it.
	 * @param fromMs - when what there is to settle began
	 * @throws Unrecovered
	 */
	async settle(fromMs = performance.now(), isTrafficAsked = false): Promise<void> {
		const startedMs = performance.now();
		const startedAtMs = this.passedMs;
		let nudgedMs = startedMs;
		let quiet = 0;
		for (;;) {
			const [sight, ...seen] = await Promise.all([
				this.world.controlPlane.look(),
				...this.machines.map(machine => (machine.isAsleep ? undefined : machine.look())),
			]);
			this.refusals = sight.refusals;
			this.#noteSerials(seen);
			const isServable = !this.isVmLost && this.isInLife(seen) && !this.machines.some(({isAsleep}) => isAsleep);
			if (!this.isInLife(seen)) this.#noteEndOfLife(fromMs);
			let unrest = await this.#unrest(sight, seen, isServable);
			if (unrest === undefined && ++quiet < enoughQuiet) {
				await wait(lookMs);
				continue;
			}
			if (unrest === undefined && isServable && (isTrafficAsked || this.#outOfLife)) unrest = await this.#askAll();
			if (unrest === undefined) {
				if (isServable) this.#closeEndOfLife();
				return;
			}
			quiet = 0;
			if (process.env['TM_DEBUG'])
				console.log('   unrest', Math.round(performance.now() - startedMs), unrest?.slice(0, 150));
			const nowMs = performance.now();
			if (nowMs - startedMs > patience.realMs || this.passedMs - startedAtMs > patience.ownMs) {
				const states = seen.map(each => JSON.stringify(each && {...each, report: each.report.gates}));
				throw new Unrecovered(`after ${Math.round(nowMs - startedMs)} ms: ${unrest}\n${states.join('\n')}`);
			}
			const awake = this.machines.flatMap(({isAsleep, clock}, i) => (isAsleep ? [] : [{clock, seen: seen[i]}]));
			const isQuick =
				awake.every(each => each.seen?.hasEnvoy && !isConnecting(each.seen)) &&
				awake.some(each => isWaiting(each.seen!, each.clock.nowMs()));
			if (nowMs - nudgedMs > (isQuick ? nudgeEveryMs.quick : nudgeEveryMs.slow)) {
				nudgedMs = nowMs;
				this.#jump(nudgeMs);
			}
			await wait(lookMs);
		}
	}

	/** Whether both machines' clocks are within the life of both certificates; undefined while one is not known. */
	isInLife(seen: readonly (Seen | undefined)[]): boolean {
		const clocks = this.machines.filter(({isAsleep}) => !isAsleep).map(({clock}) => clock.nowMs());
		return seen.every(each => {
			if (!each?.identity.notAfter || !each.identity.notBefore) return true;
			const [from, to] = [Date.parse(each.identity.notBefore), Date.parse(each.identity.notAfter)];
			return clocks.every(now => now >= from && now < to);
		});
	}

	#jump(ms: number): void {
		this.counts.jumps++;
		this.passedMs += ms;
		// Those that share clocks go together.
		for (const {clock, isAsleep} of this.machines) if (!isAsleep) clock.pass(ms);
	}

	/** What is not in order yet. */
	async #unrest(sight: Sight, all: readonly (Seen | undefined)[], isServable: boolean): Promise<string | undefined> {
		const isHere = this.away === 'here';
		for (const [i, machine] of this.machines.entries()) {
			const {name, clock, address, isAsleep} = machine;
			if (isAsleep) continue;
			const seen = all[i];
			if (!seen) return `${name}: the agent does not answer`;
			if (name === 'vm' && this.isVmLost) continue;
			const {identity, upstream, report} = seen;
			if (!seen.isHeard) return `${name}: Envoy has not come back to the agent`;
			if (identity.state === 'locked-out' && isHere) return this.#bringToken(machine);
			const dueMs = identity.nextRotationAt ? Date.parse(identity.nextRotationAt) : Number.POSITIVE_INFINITY;
			if (this.away !== 'silent' && dueMs <= clock.nowMs()) return `${name}: the certificate is due`;
			if (isHere) {
				if (identity.lastError) return `${name}: ${identity.lastError.message}`;
				if (upstream.state !== 'connected' || !sight.connected.includes(name))
					return `${name}: ${upstream.state}, ${upstream.lastError?.message}`;
				if (!sight.registered.includes(address)) return `${name}: not registered`;
				if (seen.servingSaved) return `${name}: serves what is saved`;
			} else if (this.away !== 'silent' && ['connecting', 'subscribing'].includes(upstream.state)) {
				return `${name}: ${upstream.state}`;
			}
			if (!isServable) continue;
			if (!seen.hasSecrets) return `${name}: Envoy has not taken the certificate`;
			if (!report.ready) return `${name}: ${JSON.stringify(report.gates.filter(({open}) => !open))}`;
			if (seen.rejections.length > 0) return `${name}: ${JSON.stringify(seen.rejections)}`;
		}
		return undefined;
	}

	/** Once a lock-out; with a certificate that is good there must be none. */
	async #bringToken(machine: Machine): Promise<string> {
		const {name, clock} = machine;
		const notAfter = this.#notAfter.get(name) ?? 0;
		if (notAfter > clock.nowMs())
			throw new Unrecovered(`${name} is locked out, and has a certificate until ${new Date(notAfter).toISOString()}`);
		if (!this.#unlocked.has(`${name} ${notAfter}`)) {
			this.#unlocked.add(`${name} ${notAfter}`);
			this.counts.tokens++;
			await this.world.bringToken(machine);
		}
		return `${name}: locked out, a token was brought`;
	}

	/** One request a port. */
	async #askAll(): Promise<string | undefined> {
		const startedMs = performance.now();
		const failed = await Promise.all(this.world.ports.map(port => ask({port}).then(() => undefined, String)));
		const reason = failed.find(each => each !== undefined);
		if (reason) this.ledger.note({load: 'look', startedMs, endedMs: performance.now(), reason});
		return reason;
	}

	/** From before the jump that brought it about until all is well: nobody can be served by a certificate out of its life. */
	#noteEndOfLife(fromMs: number): void {
		if (this.#outOfLife) return;
		this.counts.expiries++;
		this.#outOfLife = this.ledger.open('a certificate outside its life', fromMs);
	}

	#closeEndOfLife(): void {
		if (this.#outOfLife) this.ledger.close(this.#outOfLife);
		this.#outOfLife = undefined;
	}

	#noteSerials(all: readonly (Seen | undefined)[]): void {
		for (const [i, {name}] of this.machines.entries()) {
			const {serial, notAfter} = all[i]?.identity ?? {};
			if (!serial || !notAfter || this.#serials.get(name) === serial) continue;
			this.#notAfter.set(name, Date.parse(notAfter));
			if (this.#serials.has(name)) this.counts.renewals++;
			this.#serials.set(name, serial);
		}
	}
}

/** In the middle of a try. */
function isConnecting({upstream}: Seen): boolean {
	return upstream.state === 'connecting' || upstream.state === 'subscribing';
}

/** Before another try, of whatever it is. */
function isWaiting({identity, upstream}: Seen, nowMs: number): boolean {
	if (upstream.state === 'waiting') return true;
	const dueMs = identity.nextRotationAt ? Date.parse(identity.nextRotationAt) : 0;
	return identity.lastError !== undefined && dueMs > nowMs;
}
