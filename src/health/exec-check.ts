import {spawn} from 'node:child_process';
import {ProbeFailure} from './failure.ts';

/** Of what it writes, for the message; the rest is read and forgotten, so that it never waits for a reader. */
const mostOutputBytes = 1024;

const lastWordsMs = 200;

/** Nothing of the agent's own: its environment may hold credentials. */
const passedOn = ['PATH', 'HOME', 'USER', 'LANG', 'LC_ALL', 'TZ'] as const;

/**
 * Runs a program, without a shell; exit code 0 is healthy. It has a process group of its own, all of which is killed
 * when the time is over, and what it has left behind when it ends.
 */
export async function checkExec([file = '', ...args]: readonly string[], signal: AbortSignal): Promise<void> {
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
	let output = '';
	for (const stream of [child.stdout, child.stderr]) {
		stream.setEncoding('utf8').on('data', (text: string) => {
			if (output.length < mostOutputBytes) output += text.slice(0, mostOutputBytes - output.length);
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
		if (code === 0) return;
		const said = output.trim();
		throw new ProbeFailure(`${killedBy ? `ended by ${killedBy}` : `exit code ${code}`}${said && `: ${said}`}`);
	} finally {
		signal.removeEventListener('abort', killGroup);
		child.stdout.destroy();
		child.stderr.destroy();
	}
}
