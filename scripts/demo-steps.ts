// What each step of the demo came to: a line as it ends, and all of them in a table.
const startedMs = performance.now();

export interface Row {
	readonly step: string;
	readonly ms: number;
	readonly result: string;
	readonly isGood: boolean;
}

export const rows: Row[] = [];

const interruption = new AbortController();
/** Aborted by Ctrl-C and its like: no step begins any more, and nothing more is waited for. */
export const interrupted = interruption.signal;
export const interrupt = (): void => interruption.abort(new Error('interrupted'));

/** What comes of it, or the interruption, whichever is first. */
export function orInterrupted<T>(result: Promise<T>): Promise<T> {
	return new Promise((resolve, reject) => {
		const onAbort = () => reject(interrupted.reason);
		if (interrupted.aborted) onAbort();
		interrupted.addEventListener('abort', onAbort, {once: true});
		result.then(resolve, reject).finally(() => interrupted.removeEventListener('abort', onAbort));
	});
}

/** Runs one step, prints it as it ends, and notes it for the table. */
export async function step<T>(name: string, act: () => Promise<{result: string; value: T}>): Promise<T> {
	interrupted.throwIfAborted();
	const fromMs = performance.now();
	try {
		const {result, value} = await act();
		note(name, performance.now() - fromMs, result, true);
		return value;
	} catch (error) {
		note(name, performance.now() - fromMs, error instanceof Error ? error.message : String(error), false);
		throw error;
	}
}

export function note(name: string, ms: number, result: string, isGood: boolean): void {
	rows.push({step: name, ms, result, isGood});
	const at = ((performance.now() - startedMs) / 1000).toFixed(2).padStart(6);
	console.log(`${at} s  ${isGood ? 'ok  ' : 'FAIL'}  ${name.padEnd(30)} ${result}  (${Math.round(ms)} ms)`);
}

export function check(holds: boolean, what: string): void {
	if (!holds) throw new Error(what);
}

export async function retry<T>(act: () => Promise<T>, deadlineMs: number): Promise<T> {
	const deadline = performance.now() + deadlineMs;
	for (;;) {
		try {
			return await act();
		} catch (error) {
			interrupted.throwIfAborted();
			if (performance.now() > deadline) throw error;
			await new Promise(resolve => setTimeout(resolve, 50));
		}
	}
}

export function printTable(): void {
	console.log(`\n${'step'.padEnd(30)} ${'ms'.padStart(6)}  result`);
	for (const {step: name, ms, result, isGood} of rows)
		console.log(`${name.padEnd(30)} ${String(Math.round(ms)).padStart(6)}  ${isGood ? result : `FAIL ${result}`}`);
}
