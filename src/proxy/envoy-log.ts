import {closeSync, mkdirSync, openSync} from 'node:fs';
import {basename, dirname, join} from 'node:path';
import type {ProxyConfig} from '../config/types.ts';
import {reasonOf} from '../errors.ts';
import type {Logger} from '../log.ts';
import {errorLogPath, lastErrorLogPath, readLogTail, rotateLog} from './log-file.ts';

export type EnvoyLogConfig = Pick<ProxyConfig, 'logPath' | 'logMaxBytes' | 'bootstrapPath'>;

interface Place {
	readonly path: string;
	readonly maxBytes: number;
}

/** Beside the bootstrap, which mostly is in memory: there a log must not grow large. */
const spareMaxBytes = 4 * 1024 * 1024;

/**
 * Where Envoy's log is. Envoy does not start without one, and a disk that cannot be written is no reason to be without
 * Envoy, so there is a spare place: the folder of the bootstrap.
 */
export class EnvoyLog {
	readonly #wanted: Place;
	readonly #spare: Place;
	readonly #log: Logger;
	#place: Place;
	#problem: string | undefined;
	#isRotationTold = false;

	constructor({logPath, logMaxBytes, bootstrapPath}: EnvoyLogConfig, log: Logger) {
		this.#wanted = {path: logPath, maxBytes: logMaxBytes};
		this.#spare = {
			path: join(dirname(bootstrapPath), basename(logPath)),
			maxBytes: Math.min(logMaxBytes, spareMaxBytes),
		};
		this.#place = this.#wanted;
		this.#log = log;
	}

	get path(): string {
		return this.#place.path;
	}

	/** Of an Envoy that is not to be given up for where it logs. */
	get possiblePaths(): readonly string[] {
		return [this.#wanted.path, this.#spare.path];
	}

	get warnings(): readonly string[] {
		return this.#problem === undefined ? [] : [this.#problem];
	}

	/** For an Envoy that is about to be started. */
	choose(): void {
		const before = this.#problem;
		try {
			mkdirSync(dirname(this.#wanted.path), {recursive: true, mode: 0o700});
			closeSync(openSync(this.#wanted.path, 'a', 0o644));
			closeSync(openSync(errorLogPath(this.#wanted.path), 'a', 0o600));
			this.#use(this.#wanted);
		} catch (error) {
			this.#use(this.#spare, reasonOf(error));
		}
		if (this.#problem !== undefined && this.#problem !== before) this.#log.warn(this.#problem);
	}

	/** For one that runs already. */
	adopt(argv: readonly string[]): void {
		if (argv.includes(this.#wanted.path)) this.#use(this.#wanted);
		else this.#use(this.#spare, 'the other could not be written when it was started');
	}

	/** Its last lines, and those of its standard error. */
	tail(): string[] {
		return readLogTail(this.path);
	}

	/** Those of the one that ended, where its unit has started another since. */
	tailOfEnded(): string[] {
		return readLogTail(this.path, lastErrorLogPath(this.path));
	}

	/** Moves it away when it has become too large. Never rejects. */
	async rotate(reopen: () => void): Promise<void> {
		try {
			await rotateLog(this.path, this.#place.maxBytes, reopen);
		} catch (err) {
			// It is tried again every second or two.
			this.#log[this.#isRotationTold ? 'debug' : 'warn']({err}, "envoy's log could not be rotated");
			this.#isRotationTold = true;
		}
	}

	#use(place: Place, why?: string): void {
		this.#place = place;
		this.#problem = why === undefined ? undefined : `envoy's log is at ${place.path} until envoy starts anew: ${why}`;
	}
}
