import {closeSync, openSync, rmSync, writeSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as wait} from 'node:timers/promises';
import type {Machine} from './machine.ts';
import {type Away, type TimeMachine, Unrecovered} from './time-machine.ts';

const second = 1000;
const minute = 60 * second;
const hour = 60 * minute;
const day = 24 * hour;

/** One thing that happens to a mesh, from its beginning until all is well again. */
export type Trial = (time: TimeMachine, random: () => number) => Promise<void>;

const between = (random: () => number, from: number, to: number): number => from + (to - from) * random();
/** As often short as long. */
const ofAnyLength = (random: () => number, from: number, to: number): number => from * (to / from) ** random();
const oneOf = (time: TimeMachine, random: () => number): Machine => time.machines[random() < 0.6 ? 0 : 1]!;

/** Requests may fail from now until all is well again, for this reason. */
async function mayFail(time: TimeMachine, cause: string, act: () => Promise<void>): Promise<void> {
	const window = time.ledger.open(cause);
	await act();
	await time.untilWell();
	time.ledger.close(window);
}

async function killAgent(time: TimeMachine, random: () => number): Promise<void> {
	const machine = oneOf(time, random);
	// At times in the middle of a renewal.
	if (time.away === 'here' && random() < 0.5) {
		machine.workload.command('rotate').catch(() => {}); // the agent is killed meanwhile
		await wait(random() * 60);
	}
	await machine.killAgent();
	machine.start();
	await time.untilWell();
}

async function killEnvoy(time: TimeMachine, random: () => number): Promise<void> {
	const machine = oneOf(time, random);
	await mayFail(time, 'kill -9 of Envoy', async () => machine.killEnvoy());
}

async function reboot(time: TimeMachine, random: () => number): Promise<void> {
	const machine = oneOf(time, random);
	await mayFail(time, 'kill -9 of both, a reboot', async () => {
		await machine.cutPower();
		machine.start();
	});
}

async function move(time: TimeMachine, random: () => number): Promise<void> {
	const {vm} = time.world;
	await mayFail(time, 'a reboot with another address', async () => {
		await vm.cutPower();
		await vm.moveTo(`127.0.1.${20 + Math.floor(random() * 200)}`);
		vm.start();
		await time.settle();
		// The entry of the old address is kept for a while.
		await time.linger();
		await wait(300);
	});
}

/** @param meanwhile - what happens half way */
async function goAway(time: TimeMachine, away: Away, ms: number, meanwhile?: () => Promise<void>): Promise<void> {
	const {controlPlane} = time.world;
	const unavailable = {code: 'unavailable', message: 'no healthy upstream'};
	time.away = away;
	if (away === 'gone') await controlPlane.tell('faults.stop');
	else if (away === 'silent') await controlPlane.tell('faults.stopAnswering');
	else await controlPlane.tell('faults.refuse', {ads: unavailable, ca: unavailable});
	if (away !== 'gone') await controlPlane.tell('faults.closeConnections');
	await time.advance(ms / 2);
	await meanwhile?.();
	await time.advance(ms / 2);
	const comeBack = async () => {
		time.away = 'here';
		if (away === 'gone') await controlPlane.tell('faults.restart');
		else if (away === 'silent') await controlPlane.tell('faults.resume');
		else await controlPlane.tell('faults.refuse', {ads: undefined, ca: undefined});
	};
	// One that has gone keeps the entries; one that lives deletes those of who cannot reach it, and tells the others first
	// if they are back first.
	if (away === 'gone') {
		await comeBack();
		await time.untilWell();
	} else await mayFail(time, 'the entry deleted by a control plane that let nobody in', comeBack);
}

const goneBriefly: Trial = (time, random) => goAway(time, 'gone', ofAnyLength(random, second, 5 * minute));
const goneLong: Trial = (time, random) => goAway(time, 'gone', ofAnyLength(random, 10 * minute, 10 * hour));
const goneForADay: Trial = (time, random) => goAway(time, 'gone', between(random, 12 * hour, 26 * hour));
const silent: Trial = (time, random) => goAway(time, 'silent', ofAnyLength(random, 10 * second, 5 * hour));
const refusing: Trial = (time, random) => goAway(time, 'refusing', ofAnyLength(random, 10 * second, 5 * hour));
const goneAndReboot: Trial = (time, random) =>
	goAway(time, 'gone', ofAnyLength(random, 10 * minute, 10 * hour), () => reboot(time, random));
const goneAndKill: Trial = (time, random) =>
	goAway(time, 'gone', ofAnyLength(random, 10 * minute, 10 * hour), () => killAgent(time, random));

async function hibernate(time: TimeMachine, random: () => number): Promise<void> {
	const {vm, cluster} = time.world;
	await mayFail(time, 'the VM suspended', async () => {
		vm.suspend();
		await time.advance(ofAnyLength(random, minute, 30 * hour));
		// The machine's clock goes on, that of its timers has stood still.
		vm.clock.setBy(cluster.clock);
		vm.resume();
		await time.linger();
	});
}

async function stepClock(time: TimeMachine, random: () => number): Promise<void> {
	const {vm} = time.world;
	const byMs = ofAnyLength(random, second, 6 * hour) * (random() < 0.5 ? 1 : -1);
	vm.clock.step(byMs);
	await time.linger();
	await time.settle();
	await time.advance(ofAnyLength(random, second, 2 * hour));
	vm.clock.step(-byMs);
	await time.linger();
	await time.untilWell();
}

/** The battery of its clock is empty: it boots with a wrong time and has the right one some minutes later. */
async function rebootLost(time: TimeMachine, random: () => number): Promise<void> {
	const {vm} = time.world;
	const byMs = random() < 0.5 ? -between(random, 300 * day, 900 * day) : between(random, 2 * day, 20 * day);
	await mayFail(time, 'a reboot with a wrong clock', async () => {
		await vm.cutPower();
		vm.clock.step(byMs);
		time.isVmLost = true;
		vm.start();
		await time.advance(between(random, minute, 30 * minute));
		vm.clock.step(-byMs);
		time.isVmLost = false;
		await time.linger();
	});
}

async function fillDisk(time: TimeMachine, random: () => number): Promise<void> {
	const {vm} = time.world;
	const path = join(vm.workload.stateDir, 'filler');
	fill(path);
	await time.advance(ofAnyLength(random, minute, 10 * hour));
	if (random() < 0.5) {
		await vm.killAgent();
		vm.start();
		await time.untilWell();
		await time.advance(ofAnyLength(random, minute, 5 * hour));
	}
	rmSync(path);
	// What could not be written is tried again after some minutes; an agent that came meanwhile looks with the next pair.
	await vm.workload.command('rotate');
	await time.advance(15 * minute);
	for (let looks = 0; ; looks++) {
		const warnings = (await vm.look())?.identity.warnings ?? [];
		if (warnings.length === 0) return;
		if (looks === 500) throw new Unrecovered(`the disk has room again: ${warnings.join('; ')}`);
		await wait(10);
	}
}

function fill(path: string): void {
	const file = openSync(path, 'w');
	try {
		for (let bytes = 65_536; bytes >= 1; )
			try {
				writeSync(file, Buffer.alloc(bytes));
			} catch {
				bytes >>= 1;
			}
	} finally {
		closeSync(file);
	}
}

/** All but what comes at its own time. */
export function listTrials(hasSmallDisk: boolean): Readonly<Record<string, Trial>> {
	return {
		'agent killed': killAgent,
		'Envoy killed': killEnvoy,
		rebooted: reboot,
		'address changed': move,
		'control plane away for a moment': goneBriefly,
		'control plane away': goneLong,
		'control plane away for a day': goneForADay,
		'control plane silent': silent,
		'control plane refuses': refusing,
		'control plane away, rebooted': goneAndReboot,
		'control plane away, agent killed': goneAndKill,
		suspended: hibernate,
		'clock stepped': stepClock,
		'rebooted with a wrong clock': rebootLost,
		...(hasSmallDisk && {'disk full': fillDisk}),
	};
}

/** From now on a new root signs, and the old one is trusted too. */
export async function addRoot(time: TimeMachine): Promise<void> {
	await time.world.controlPlane.tell('faults.rotateRoot');
	await untilAll(time, 'both roots', ({identity}) => identity.rootCount === 2);
}

/** The old root is trusted no more, once nobody shows a certificate of it. */
export async function dropRoot(time: TimeMachine, addedAtMs: number): Promise<void> {
	for (let hours = 0; ; hours++) {
		const seen = await Promise.all(time.machines.map(machine => machine.look()));
		if (seen.every(each => each?.identity.notBefore && Date.parse(each.identity.notBefore) > addedAtMs)) break;
		if (hours === 36) throw new Unrecovered('certificates of the old root are still in use');
		await time.advance(hour);
	}
	await time.world.controlPlane.tell('faults.dropOldRoot');
	await untilAll(time, 'one root', ({identity}) => identity.rootCount === 1);
}

type Look = NonNullable<Awaited<ReturnType<Machine['look']>>>;

async function untilAll(time: TimeMachine, what: string, holds: (seen: Look) => boolean): Promise<void> {
	for (let hours = 0; ; hours++) {
		// The control plane collects changes for a tenth of a second before it tells.
		for (let looks = 0; looks < 100; looks++) {
			const seen = await Promise.all(time.machines.map(machine => machine.look()));
			if (seen.every(each => each && holds(each))) return;
			await wait(10);
		}
		if (hours === 36) throw new Unrecovered(`waited ${hours} hours for ${what}`);
		await time.advance(hour);
	}
}
