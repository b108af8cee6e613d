// Loaded by the agent itself: what it needs between two steps, and nothing that makes rules.
import {execFile} from 'node:child_process';
import {createHash, randomUUID} from 'node:crypto';
import {readFile} from 'node:fs/promises';

/** What to look at to see, cheaply, whether anything has changed since the rules were found to be good. */
export interface Look {
	/** Programs with their arguments; what they print is compared. */
	readonly commands: readonly (readonly [program: string, ...args: string[]])[];
	readonly files: readonly string[];
	/** Of both, as they were. */
	readonly seen: Readonly<Record<'commands' | 'files', string>>;
}

const withinMs = 10_000;

export async function lookAt(what: Pick<Look, 'commands' | 'files'>): Promise<Look['seen']> {
	const [commands, files] = await Promise.all([seeCommands(what), seeFiles(what)]);
	return {commands, files};
}

/** @param isWhole - the files alone cost next to nothing */
export async function hasChanged(look: Look, isWhole: boolean): Promise<boolean> {
	if ((await seeFiles(look)) !== look.seen.files) return true;
	return isWhole && (await seeCommands(look)) !== look.seen.commands;
}

const seeFiles = async ({files}: Pick<Look, 'files'>): Promise<string> =>
	digest(await Promise.all(files.map(path => readFile(path, 'utf8').catch(() => ''))));

const seeCommands = async ({commands}: Pick<Look, 'commands'>): Promise<string> =>
	digest(await Promise.all(commands.map(([program, ...args]) => output(program, args))));

/** Counters and dates apart, the same for as long as nothing changes. */
function digest(texts: readonly string[]): string {
	const hash = createHash('sha256');
	for (const text of texts) hash.update(`${text.replaceAll(/\[\d+:\d+\]|^#.*$/gm, '')}\0`);
	return hash.digest('hex').slice(0, 16);
}

/** A failure is never the same as before, so that whoever cannot look has it looked at closely. */
function output(program: string, args: readonly string[]): Promise<string> {
	return new Promise(resolve => {
		const options = {timeout: withinMs, maxBuffer: 64 * 2 ** 20, env: {LC_ALL: 'C'}};
		execFile(program, [...args], options, (error, stdout) => resolve(error ? randomUUID() : stdout));
	});
}
