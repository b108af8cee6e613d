import {spawn} from 'node:child_process';

/** After its end, how long what it wrote last is waited for. */
const lastWordsMs = 200;

/** Nothing of the agent's own: its environment may hold credentials. */
const passedOn = ['PATH', 'HOME', 'USER', 'LANG', 'LC_ALL', 'TZ'] as const;

export interface ProgramEnd {
	/** Undefined when a signal has ended it. */
	readonly code: number | undefined;
	readonly killedBy: NodeJS.Signals | undefined;
	readonly stdout: string;
	readonly stderr: string;
	/** It wrote more than was kept. */
	readonly isCut: boolean;
}

/**
 * Runs a program of the admin's, without a shell. It has a process group of its own, all of which is killed when the
 * signal says so, and what it has left behind when it ends.
 * @param mostBytes - kept of each output; the rest is read and forgotten, so that it never waits for a reader
 * @throws the system's error when it cannot be started; `signal.reason`
 */
export async function runProgram(
	[file = '', ...args]: readonly string[],
	mostBytes: number,
	signal: AbortSignal,
): Promise<ProgramEnd> {
	signal.throwIfAborted();
	const child = spawn(file, args, {
		cwd: '/',
		detached: true,
		env: Object.fromEntries(passedOn.flatMap(name => (process.env[name] ? [[name, process.env[name]]] : []))),
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	const killGroup = () => {
		try {
			if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
		} catch {
			// It has ended, with all it has started.
		}
	};
	signal.addEventListener('abort', killGroup, {once: true});
	let isCut = false;
	const output = {stdout: '', stderr: ''};
	for (const name of ['stdout', 'stderr'] as const) {
		const stream = child[name];
		stream.setEncoding('utf8').on('data', (text: string) => {
			isCut ||= output[name].length + text.length > mostBytes;
			output[name] = (output[name] + text).slice(0, mostBytes);
		});
		stream.on('error', () => {}); // Its end is told by the process.
	}
	try {
		const [code, killedBy] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
			child.once('error', reject);
			child.once('exit', (...end) => {
				// At once: while one of the group lives, its number is nobody else's.
				killGroup();
				// What it wrote last is still to be read; one that has left its group may keep the pipes open.
				child.once('close', () => resolve(end));
				setTimeout(() => resolve(end), lastWordsMs).unref();
			});
		});
		signal.throwIfAborted();
		return {code: code ?? undefined, killedBy: killedBy ?? undefined, ...output, isCut};
	} finally {
		signal.removeEventListener('abort', killGroup);
		child.stdout.destroy();
		child.stderr.destroy();
	}
}
