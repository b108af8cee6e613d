import {execFileSync} from 'node:child_process';
import {closeSync, existsSync, openSync, writeSync} from 'node:fs';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';

const source = fileURLToPath(new URL('clock-shift.c', import.meta.url));

/** The first C compiler there is; undefined where there is none. */
export function findCompiler(): string | undefined {
	const directories = (process.env['PATH'] ?? '').split(':');
	return ['cc', 'tcc'].flatMap(name => directories.map(dir => join(dir, name))).find(path => existsSync(path));
}

/** @returns path of the library */
export function buildClockShift(compiler: string, directory: string): string {
	const library = join(directory, 'clock-shift.so');
	execFileSync(compiler, ['-O2', '-shared', '-fPIC', '-o', library, source]);
	return library;
}

/** The clocks of one machine: this one's, moved. */
export class ShiftedClock {
	readonly #library: string;
	readonly #path: string;
	readonly #file: number;
	#wallMs = 0;
	#monotonicMs = 0;

	constructor(library: string, path: string) {
		this.#library = library;
		this.#path = path;
		this.#file = openSync(path, 'w');
		this.#write();
	}

	/** Wall clock. */
	nowMs(): number {
		return Date.now() + this.#wallMs;
	}

	/** Time passes. */
	pass(ms: number): void {
		this.#wallMs += ms;
		this.#monotonicMs += ms;
		this.#write();
	}

	/** The wall clock alone is set, as by a time server, a person, or a resume. */
	step(ms: number): void {
		this.#wallMs += ms;
		this.#write();
	}

	/** The wall clock is set to that of another machine. */
	setBy(other: ShiftedClock): void {
		this.step(other.#wallMs - this.#wallMs);
	}

	/** For a program whose timers are to follow. */
	get env(): Readonly<Record<string, string>> {
		return {...this.wallEnv, CLOCK_SHIFT_MONOTONIC: '1'};
	}

	/** For a program whose timers run in real time. */
	get wallEnv(): Readonly<Record<string, string>> {
		return {LD_PRELOAD: this.#library, CLOCK_SHIFT_FILE: this.#path};
	}

	close(): void {
		closeSync(this.#file);
	}

	#write(): void {
		const bytes = new BigInt64Array([this.#wallMs, this.#monotonicMs].map(ms => BigInt(Math.round(ms * 1e6))));
		writeSync(this.#file, bytes, 0, bytes.byteLength, 0);
	}
}
