import {createHash} from 'node:crypto';
import {constants} from 'node:fs';
import {open} from 'node:fs/promises';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {
	type DurableFs,
	replaceSymlink,
	syncDirectory,
	systemFs,
	temporaryName,
	temporaryPrefix,
	writeNewFile,
} from '../lifecycle/atomic-file.ts';
import {Secret} from '../log.ts';

/** What belongs together on disk: seen as a whole or not at all. */
export interface StoredPair {
	readonly keyPem: Secret;
	readonly chainPem: string;
	readonly rootsPem: string;
	readonly receivedAt: Date;
	/** The name that was asked for; another name in the configuration makes the pair somebody else's. */
	readonly requestedSpiffeId: string;
	/** The control plane is known to renew without the token. */
	readonly isTokenless: boolean;
}

export interface StoredGeneration extends StoredPair {
	readonly number: number;
}

export interface Store {
	/** Whole generations, newest first, and why others were passed over. */
	load(): Promise<{generations: StoredGeneration[]; problems: string[]}>;
	/** Removes what an interrupted write left behind. Only the holder of the directory's lock may call it. */
	removeLeftovers(): Promise<void>;
	/** Returns the new generation's number when it will survive a power cut. Rejects with the system's error. */
	save(pair: StoredPair): Promise<number>;
}

/** Kept are the newest and the one before it, which was whole when the newest was written. */
const keptGenerations = 2;
const maxFileBytes = 2 * 1024 * 1024;
const contentFiles = ['key.pem', 'cert-chain.pem', 'roots.pem'] as const;

type ContentFile = (typeof contentFiles)[number];

interface Meta {
	readonly version: 1;
	readonly receivedAt: string;
	readonly requestedSpiffeId: string;
	readonly isTokenless: boolean;
	/** File name → SHA-256 in hex. */
	readonly checksums: Readonly<Record<string, string>>;
}

/**
 * Key, chain and roots under `DIR/generations/000012/`, with `DIR/current` pointing at the newest. A generation is
 * built beside the others under a temporary name, every file and the directory synced, and then renamed; the rename
 * is the moment it exists. Checksums in meta.json find what a disk changed afterwards.
 */
export function openStore(dir: string, fs: DurableFs = systemFs, uid = process.geteuid!()): Store {
	const generationsDir = `${dir}/generations`;
	let known: number[] = [];

	const listNumbers = async (): Promise<number[]> => {
		try {
			const names = await fs.readdir(generationsDir);
			return names
				.filter(name => /^\d{6,15}$/.test(name))
				.map(Number)
				.sort((a, b) => b - a);
		} catch (error) {
			if (systemCode(error) === 'ENOENT') return [];
			throw error;
		}
	};

	const prune = async (): Promise<void> => {
		for (const number of await listNumbers()) {
			if (known.includes(number)) continue;
			// Renamed first, so that a generation half removed is never looked at.
			const doomed = `${generationsDir}/${temporaryName()}`;
			await fs.rename(pathOf(generationsDir, number), doomed);
			await fs.rm(doomed, {recursive: true, force: true});
		}
	};

	return {
		load: async () => {
			const generations: StoredGeneration[] = [];
			const problems: string[] = [];
			for (const number of await listNumbers()) {
				try {
					generations.push(await loadGeneration(generationsDir, number, uid));
				} catch (error) {
					problems.push(`stored certificate ${pathOf(generationsDir, number)} is not used: ${reasonOf(error)}`);
				}
			}
			known = generations.slice(0, keptGenerations).map(({number}) => number);
			return {generations, problems};
		},
		removeLeftovers: async () => {
			for (const parent of [dir, generationsDir]) {
				const names = await fs.readdir(parent).catch(error => {
					if (systemCode(error) === 'ENOENT') return [];
					throw error;
				});
				for (const name of names) {
					if (name.startsWith(temporaryPrefix)) await fs.rm(`${parent}/${name}`, {recursive: true, force: true});
				}
			}
		},
		save: async pair => {
			if (await fs.mkdir(generationsDir, {recursive: true, mode: 0o700})) await syncDirectory(dir, fs);
			const number = Math.max(0, ...(await listNumbers())) + 1;
			await writeGeneration(generationsDir, number, pair, fs);
			known = [number, ...known].slice(0, keptGenerations);
			// The pair is safe; the link is for people and other programs, and old pairs only take room.
			await replaceSymlink(`generations/${nameOf(number)}`, `${dir}/current`, fs).catch(() => {});
			await prune().catch(() => {});
			return number;
		},
	};
}

async function writeGeneration(parent: string, number: number, pair: StoredPair, fs: DurableFs): Promise<void> {
	const temporary = `${parent}/${temporaryName()}`;
	try {
		await fs.mkdir(temporary, {mode: 0o700});
		const content: Record<ContentFile, string> = {
			'key.pem': pair.keyPem.reveal(),
			'cert-chain.pem': pair.chainPem,
			'roots.pem': pair.rootsPem,
		};
		for (const name of contentFiles) await writeNewFile(`${temporary}/${name}`, content[name], 0o600, fs);
		await writeNewFile(`${temporary}/meta.json`, renderMeta(pair, content), 0o600, fs);
		await syncDirectory(temporary, fs);
		await fs.rename(temporary, pathOf(parent, number));
	} catch (error) {
		await fs.rm(temporary, {recursive: true, force: true}).catch(() => {}); // the first error is the one to tell
		throw error;
	}
	await syncDirectory(parent, fs);
}

/** @throws Error saying what is wrong with it, without its content */
async function loadGeneration(parent: string, number: number, uid: number): Promise<StoredGeneration> {
	const directory = pathOf(parent, number);
	const meta = parseMeta((await readOwnFile(`${directory}/meta.json`, uid)).toString('utf8'));
	const content = {} as Record<ContentFile, string>;
	for (const name of contentFiles) {
		const bytes = await readOwnFile(`${directory}/${name}`, uid);
		if (checksum(bytes) !== meta.checksums[name]) throw new Error(`${name} does not match its checksum`);
		content[name] = bytes.toString('utf8');
	}
	return {
		number,
		keyPem: new Secret(content['key.pem']),
		chainPem: content['cert-chain.pem'],
		rootsPem: content['roots.pem'],
		receivedAt: new Date(meta.receivedAt),
		requestedSpiffeId: meta.requestedSpiffeId,
		isTokenless: meta.isTokenless,
	};
}

/** Reads a file that is ours alone; anything a different user could have put there is refused. */
async function readOwnFile(path: string, uid: number): Promise<Buffer> {
	const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
	try {
		const stat = await file.stat();
		if (!stat.isFile()) throw new Error(`${path} is not a regular file`);
		if (stat.uid !== uid) throw new Error(`${path} is owned by uid ${stat.uid}, not ${uid}`);
		if (stat.mode & 0o022) throw new Error(`${path} can be written by other users`);
		if (stat.size > maxFileBytes) throw new Error(`${path} is larger than ${maxFileBytes} bytes`);
		return await file.readFile();
	} finally {
		await file.close();
	}
}

function renderMeta(
	{receivedAt, requestedSpiffeId, isTokenless}: StoredPair,
	content: Record<ContentFile, string>,
): string {
	const checksums = Object.fromEntries(contentFiles.map(name => [name, checksum(content[name])]));
	const meta: Meta = {version: 1, receivedAt: receivedAt.toISOString(), requestedSpiffeId, isTokenless, checksums};
	return `${JSON.stringify(meta, undefined, '\t')}\n`;
}

function parseMeta(text: string): Meta {
	let meta: Partial<Meta> | null;
	try {
		meta = JSON.parse(text) as Partial<Meta> | null;
	} catch {
		throw new Error('meta.json is not JSON');
	}
	if (meta?.version !== 1) throw new Error(`meta.json has version ${String(meta?.version)}, expected 1`);
	const {receivedAt, requestedSpiffeId, isTokenless, checksums} = meta;
	if (typeof receivedAt !== 'string' || Number.isNaN(Date.parse(receivedAt)))
		throw new Error('meta.json has no receivedAt');
	if (typeof requestedSpiffeId !== 'string' || typeof checksums !== 'object' || checksums === null) {
		throw new Error('meta.json is incomplete');
	}
	return {version: 1, receivedAt, requestedSpiffeId, isTokenless: isTokenless === true, checksums};
}

function checksum(data: string | Buffer): string {
	return createHash('sha256').update(data).digest('hex');
}

function nameOf(number: number): string {
	return String(number).padStart(6, '0');
}

function pathOf(parent: string, number: number): string {
	return `${parent}/${nameOf(number)}`;
}

/**
 * Makes sure that the directory is there and ours alone: who can write in it can replace our key.
 * @throws AgentError identity.state_unusable
 */
export async function prepareStateDir(dir: string, fs: DurableFs = systemFs, uid = process.geteuid!()): Promise<void> {
	try {
		await makeDirectory(dir, fs);
		const stat = await fs.stat(dir);
		if (!stat.isDirectory()) throw unusable(dir, 'it is not a directory', `move ${dir} out of the way`);
		if (stat.uid !== uid) {
			throw unusable(dir, `it is owned by uid ${stat.uid}, the agent runs as uid ${uid}`, ownHint(dir, uid));
		}
		if (stat.mode & 0o022) {
			const mode = (stat.mode & 0o777).toString(8).padStart(4, '0');
			throw unusable(dir, `other users can write in it (mode ${mode})`, `chmod 0700 ${dir}`);
		}
	} catch (error) {
		throw error instanceof AgentError ? error : stateError(dir, error, uid);
	}
}

async function makeDirectory(dir: string, fs: DurableFs): Promise<void> {
	try {
		await fs.mkdir(dir, {recursive: true, mode: 0o700});
	} catch (error) {
		// On a read-only file system Node's recursive mkdir says ENOENT; the plain one says what it is.
		if (systemCode(error) !== 'ENOENT') throw error;
		await fs.mkdir(dir, {mode: 0o700});
	}
}

/** A system error on the state directory, with what to do about it. */
export function stateError(dir: string, cause: unknown, uid = process.geteuid!()): AgentError {
	const hints: Record<string, string> = {
		ENOSPC: `free space on its file system (\`df -h ${dir}\`, \`df -i ${dir}\`)`,
		EDQUOT: `raise the disk quota of uid ${uid} or free space in ${dir}`,
		EROFS: `mount its file system read-write, or set another state directory`,
		EACCES: ownHint(dir, uid),
		EPERM: ownHint(dir, uid),
		ENOTDIR: `a part of ${dir} is a file: move it out of the way, or set another state directory`,
		EEXIST: `move ${dir} out of the way, or set another state directory`,
	};
	const hint = hints[systemCode(cause) ?? ''] ?? `check ${dir} and the disk below it`;
	return new AgentError('identity.state_unusable', `use state directory ${dir}: ${reasonOf(cause)}`, {cause, hint});
}

function ownHint(dir: string, uid: number): string {
	return `give it to the user the agent runs as (\`chown -R ${uid} ${dir}\`), or run the agent as the owner`;
}

function unusable(dir: string, why: string, hint: string): AgentError {
	return new AgentError('identity.state_unusable', `use state directory ${dir}: ${why}`, {hint});
}
