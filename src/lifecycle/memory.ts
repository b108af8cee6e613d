import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {setFlagsFromString} from 'node:v8';
import {runInNewContext} from 'node:vm';
import type {Logger} from '../log.ts';
import type {Clock} from './clock.ts';
import type {Readiness} from './readiness.ts';
import type {Running} from './running.ts';

export interface MemoryKeeperDeps {
	readonly readiness: Readiness;
	readonly clock: Clock;
	readonly log: Logger;
}

/** Start-up work ends about then; what it needed is not needed again. */
const settleAfterMs = 2_000;
const lookEveryMs = 10_000;
/** Growth since the last time that makes another go worth its 50 ms. */
const worthBytes = 8 * 1024 * 1024;
/**
 * How much a heap may grow over what was live before V8 collects it, in percent. Left to itself, V8 begins some 4 MB after
 * a thorough collection, and then does so twice in the middle of a push of 5,000 services, for 70 ms of CPU. What a push
 * leaves behind is given back here, when it is over.
 */
const heapGrowthPercent = 200;
/** Younger than this, a process has had no thorough collection that was eight seconds ago. */
const reducerSleepsS = 7;
/** Share of one CPU below which the agent counts as idle: giving back memory must not get in the way of a push. */
const idleShare = 0.02;

/**
 * Gives back what starting, or a large push, has left behind: first when the agent is ready, then whenever it has
 * grown and is idle. The agent shares the VM with somebody's application, whose memory it is.
 */
export function startMemoryKeeper({readiness, clock, log}: MemoryKeeperDeps): Running {
	const stopping = new AbortController();
	const {signal} = stopping;
	const keep = async (): Promise<void> => {
		await untilReady(readiness, signal);
		await clock.sleep(settleAfterMs, signal);
		let settledBytes = settle(log);
		for (;;) {
			const before = process.cpuUsage();
			await clock.sleep(lookEveryMs, signal);
			const {user, system} = process.cpuUsage(before);
			const isIdle = (user + system) / 1000 / lookEveryMs < idleShare;
			if (isIdle && ownBytes() - settledBytes > worthBytes) settledBytes = settle(log);
		}
	};
	const finished = keep().catch((error: unknown) => {
		if (!signal.aborted) throw error;
	});
	return {
		finished,
		stop: async () => {
			stopping.abort();
			await finished;
		},
	};
}

function untilReady(readiness: Readiness, signal: AbortSignal): Promise<void> {
	return new Promise((resolve, reject) => {
		if (readiness.isReady) {
			resolve();
			return;
		}
		const stop = readiness.onChange(() => {
			if (!readiness.isReady) return;
			stop();
			resolve();
		});
		signal.addEventListener('abort', () => {
			stop();
			reject(signal.reason);
		});
	});
}

/** Does it all, once; returns our own resident bytes after it. */
function settle(log: Logger): number {
	const before = process.memoryUsage.rss();
	collectGarbage();
	releasePages(log);
	const after = process.memoryUsage.rss();
	log.debug({beforeMiB: Math.round(before / 2 ** 20), afterMiB: Math.round(after / 2 ** 20)}, 'memory given back');
	return ownBytes();
}

/**
 * Resident bytes without pages of files: these come back within seconds as they are used, and counting them would have
 * everything given back again every ten seconds, for ever.
 */
function ownBytes(): number {
	return ownShare(readFileSync('/proc/self/statm', 'latin1')) * process.memoryUsage.rss();
}

/** @param statm - pages: size, resident, shared (files and shared memory), … (proc_pid_statm(5)) */
export function ownShare(statm: string): number {
	const [, resident = 0, shared = 0] = statm.split(' ').map(Number);
	return resident === 0 ? 0 : 1 - shared / resident;
}

/** A collection of V8's thorough kind: it also drops code that is not in use and shrinks the young generation. */
function collectGarbage(): void {
	setFlagsFromString('--expose-gc');
	// What V8 decides at the end of a collection follows from it.
	setFlagsFromString(`--heap-growing-percent=${heapGrowthPercent}`);
	// V8's own way to do what is done here: two more collections, from eight seconds after a thorough one, each 40 ms of
	// CPU. Where one of them may have begun, lowering the count would end the process (a CHECK of V8's memory reducer).
	if (process.uptime() < reducerSleepsS) setFlagsFromString('--memory-reducer-gc-count=0');
	const gc = runInNewContext('gc') as (options: object) => void;
	gc({type: 'major', execution: 'sync', flavor: 'last-resort'});
}

/** The two calls of libc that Node does not have. */
interface Libc {
	readonly madvise: (address: number, length: number, advice: number) => number;
	readonly mallocTrim: (keep: number) => number;
}

let libc: Libc | undefined | 'unavailable';

/** koffi is an optional package: without it the agent works as well and is larger. */
function loadLibc(log: Logger): Libc | undefined {
	if (libc === 'unavailable') return undefined;
	if (libc) return libc;
	try {
		const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
		const library = koffi.load('libc.so.6');
		libc = {
			madvise: library.func('int madvise(uintptr_t, size_t, int)') as Libc['madvise'],
			mallocTrim: library.func('int malloc_trim(size_t)') as Libc['mallocTrim'],
		};
		return libc;
	} catch (err) {
		log.debug({err}, 'koffi is not there: pages of the runtime stay resident');
		libc = 'unavailable';
		return undefined;
	}
}

/** MADV_DONTNEED, from linux/mman.h. */
const dontNeed = 4;

function releasePages(log: Logger): void {
	const {madvise, mallocTrim} = loadLibc(log) ?? {};
	if (!madvise || !mallocTrim) return;
	mallocTrim(0);
	for (const {start, end} of untouchedFileMappings(readFileSync('/proc/self/smaps', 'utf8')))
		madvise(start, end - start, dontNeed);
}

/**
 * Read-only private mappings of files in which not a single page is our own: dropping their pages loses nothing, the
 * next use takes them from the page cache. A mapping with own pages (relocated data) would lose its content.
 * @param smaps - text of /proc/PID/smaps
 */
export function untouchedFileMappings(smaps: string): {readonly start: number; readonly end: number}[] {
	const found: {start: number; end: number}[] = [];
	let current: {start: number; end: number} | undefined;
	for (const line of smaps.split('\n')) {
		const head = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)/.exec(line);
		if (head) {
			const [, start = '', end = '', flags, inode] = head;
			const isEligible = (flags === 'r-xp' || flags === 'r--p') && inode !== '0';
			current = isEligible ? {start: Number.parseInt(start, 16), end: Number.parseInt(end, 16)} : undefined;
		} else if (current && /^Anonymous:\s+0 kB/.test(line)) found.push(current);
	}
	return found;
}
