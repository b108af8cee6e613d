import {seededRandom} from '../support/seeded-random.ts';
import {Ledger} from './ledger.ts';
import type {Usage} from './machine.ts';
import {TimeMachine, Unrecovered} from './time-machine.ts';
import {addRoot, dropRoot, listTrials} from './trials.ts';
import {startWorld} from './world.ts';

const hour = 3_600_000;
const day = 24 * hour;

export interface LifeOptions {
	readonly seed: number;
	readonly days: number;
	/** Between two events, on average; 4 unless given. */
	readonly hoursBetween?: number;
	/** C compiler. */
	readonly compiler: string;
	/** Told what happens, a line each. */
	readonly tell?: (line: string) => void;
}

export interface Life {
	readonly seed: number;
	/** That passed, by the control plane's clock. */
	readonly days: number;
	readonly tookMs: number;
	readonly requests: number;
	readonly failed: number;
	/** Longest time without a good answer, of any load. */
	readonly longestGapMs: number;
	readonly causes: ReadonlyMap<string, {windows: number; failed: number; longestMs: number}>;
	/** Failed requests without a stated cause, what was not mended, what must not happen. Empty = passed. */
	readonly problems: readonly string[];
	readonly trials: ReadonlyMap<string, number>;
	readonly rootRotations: number;
	readonly renewals: number;
	readonly tokens: number;
	readonly expiries: number;
	readonly selfHeals: number;
	readonly longestHealMs: number;
	readonly mostUsage: Usage;
	/** Where logs are, if they were kept because of problems. */
	readonly directory: string | undefined;
}

/** At most so much, whatever happened. */
const bounds: Usage = {agentMiB: 160, envoyMiB: 200, agentFiles: 80, stateKiB: 6000, generations: 3};

/** One life of a mesh, the same for the same seed as far as it is in our hands. */
export async function live({seed, days, hoursBetween = 4, compiler, tell = () => {}}: LifeOptions): Promise<Life> {
	const startedMs = performance.now();
	const random = seededRandom(seed);
	const ledger = new Ledger();
	const world = await startWorld(compiler, ledger);
	const time = new TimeMachine(world, ledger);
	const trials = listTrials(world.hasSmallDisk);
	const counts = new Map<string, number>();
	const problems: string[] = [];
	const most = {agentMiB: 0, envoyMiB: 0, agentFiles: 0, stateKiB: 0, generations: 0};
	let rootRotations = 0;
	let addedAtMs = 0;

	const say = (what: string) => {
		const clock = new Date(world.cluster.clock.nowMs()).toISOString().slice(0, 19);
		tell(`day ${(time.passedMs / day).toFixed(2)} (${clock}): ${what}`);
	};
	const measure = () => {
		for (const machine of time.machines) {
			const usage = machine.usage();
			for (const key of Object.keys(most) as (keyof Usage)[]) most[key] = Math.max(most[key], usage[key]);
		}
	};
	/** A new root, and later the end of the old one, twice in a life, once in a short one. */
	const rootChanges = days < 4 ? [1, 2] : [1, 2, 3, 4];
	const roots = rootChanges.map(n => ({
		atMs: (n * days * day) / (rootChanges.length + 1),
		act: async () => {
			say(n % 2 ? 'a new root' : 'the old root goes');
			if (n % 2) {
				addedAtMs = world.cluster.clock.nowMs();
				await addRoot(time);
			} else {
				await dropRoot(time, addedAtMs);
				rootRotations++;
			}
		},
	}));

	try {
		await time.untilWell();
		world.startLoads();
		const dealt: string[] = [];
		let nextTrialMs = 0;
		while (time.passedMs < days * day) {
			if (roots[0] && time.passedMs >= roots[0].atMs) await roots.shift()!.act();
			if (time.passedMs >= nextTrialMs) {
				// Like cards: each comes once before any comes again.
				if (dealt.length === 0) dealt.push(...shuffle(Object.keys(trials), random));
				const name = dealt.pop()!;
				counts.set(name, (counts.get(name) ?? 0) + 1);
				const fromMs = performance.now();
				say(name);
				await trials[name]!(time, random);
				tell(`  well after ${Math.round(performance.now() - fromMs)} ms`);
				measure();
				nextTrialMs = time.passedMs + 2 * hoursBetween * hour * random();
			}
			await time.advance(Math.min(hour, Math.max(nextTrialMs - time.passedMs, 60_000)));
			const fresh = ledger.unexplained().slice(problems.length);
			for (const {load, reason, startedMs: at} of fresh) {
				problems.push(`${load} failed without a cause: ${reason}`);
				say(`${load} failed ${Math.round(performance.now() - at)} ms ago: ${reason}`);
			}
		}
		await time.untilWell();
	} catch (error) {
		problems.push(`not mended: ${error instanceof Unrecovered ? error.message : String(error)}`);
	} finally {
		if (problems.length === 0) measure();
	}
	return finish();

	async function finish(): Promise<Life> {
		const results = await world.stopLoads();
		const unexplained = ledger.unexplained().map(({load, reason}) => `${load} failed without a cause: ${reason}`);
		const found = [
			...problems.filter(problem => problem.startsWith('not mended')),
			...unexplained,
			...time.machines.flatMap(({surprises}) => surprises),
			...time.refusals,
			...(Object.keys(bounds) as (keyof Usage)[])
				.filter(key => most[key] > bounds[key])
				.map(key => `${key}: ${most[key]}, more than ${bounds[key]}`),
		];
		found.push(...(await world.stop(found.length > 0)).map(process => `left behind: ${process}`));
		return {
			seed,
			days: time.passedMs / day,
			tookMs: performance.now() - startedMs,
			requests: results.reduce((sum, {sent}) => sum + sent, 0),
			failed: ledger.failures.length,
			longestGapMs: Math.max(0, ...results.map(({longestGapMs}) => longestGapMs)),
			causes: ledger.byCause(),
			problems: found,
			trials: counts,
			rootRotations,
			renewals: time.counts.renewals,
			tokens: time.counts.tokens,
			expiries: time.counts.expiries,
			selfHeals: time.counts.recoveries,
			longestHealMs: time.longestRecoveryMs,
			mostUsage: most,
			directory: found.length > 0 ? world.directory : undefined,
		};
	}
}

function shuffle(names: readonly string[], random: () => number): string[] {
	const left = [...names];
	return names.map(() => left.splice(Math.floor(random() * left.length), 1)[0]!);
}

export function renderLife(life: Life): string {
	const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
	const lines = [
		`time machine: seed ${life.seed}, ${life.days.toFixed(1)} days in ${seconds(life.tookMs)}`,
		`  requests: ${life.requests}, failed ${life.failed}, longest gap ${seconds(life.longestGapMs)}`,
		...[...life.causes].map(
			([cause, {windows, failed, longestMs}]) =>
				`    ${cause}: ${failed} failed in ${windows} windows, the longest ${seconds(longestMs)}`,
		),
		`  renewals: ${life.renewals}, root rotations ${life.rootRotations}, certificates run out ${life.expiries}, tokens brought ${life.tokens}`,
		`  self-heals: ${life.selfHeals}, the longest ${seconds(life.longestHealMs)}`,
		`  events: ${[...life.trials].map(([name, count]) => `${count} × ${name}`).join(', ')}`,
		`  at most: ${Object.entries(life.mostUsage)
			.map(([what, amount]) => `${what} ${amount}`)
			.join(', ')}`,
		...life.problems.map(problem => `  PROBLEM ${problem}`),
		...(life.directory ? [`  logs are kept in ${life.directory}`] : []),
	];
	return lines.join('\n');
}
