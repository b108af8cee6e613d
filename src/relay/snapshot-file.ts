import {open} from 'node:fs/promises';
import {setImmediate as nextTurn} from 'node:timers/promises';
import {AgentError, systemCode} from '../errors.ts';
import {type DurableFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';
import {parseDeltaResponse, type Response} from './envelope.ts';
import type {Seal} from './seal.ts';

/** What is said of a snapshot in its file; sealed as the rest is. */
export interface SnapshotHead {
	/** Id of the seal it was written with. */
	readonly seal: string;
	/** Whose configuration it is; see `RelayDeps.owner`. */
	readonly owner: string;
	/** Wall-clock time, ISO 8601. */
	readonly savedAt: string;
	/** Of a file of changes: the mac of the file they are to be laid over. */
	readonly base?: string;
}

export interface SnapshotFile {
	readonly head: SnapshotHead;
	/** Names this very content. */
	readonly mac: string;
	/** To be taken in one after another, as if the control plane had sent them. */
	readonly answers: readonly Response[];
	readonly bytes: number;
}

/** Larger ones are neither written nor read: some ten times a mesh of 5,000 services. */
export const largestSnapshot = 256 * 1024 * 1024;

const formatVersion = 1;
const magicName = 'onramp configuration ';
const magic = Buffer.from(`${magicName}${formatVersion}\n`, 'latin1');
const macBytes = 32;
/** Sealed and written before other work gets a turn: about a millisecond's worth. */
const sliceBytes = 1024 * 1024;

/**
 * Replaces the file: the magic line; then pieces, each its length (4 bytes, big endian) and its bytes: the head as JSON,
 * DeltaDiscoveryResponses, an empty one; then the HMAC-SHA256 of all that.
 * @param answers - encoded; made one at a time, so that a large mesh is never in memory twice
 * @returns the mac and the size
 * @throws system errors
 */
export async function writeSnapshot(
	path: string,
	head: SnapshotHead,
	answers: Iterable<Buffer>,
	seal: Seal,
	fs: DurableFs,
): Promise<{mac: string; bytes: number}> {
	const hmac = seal.start();
	let bytes = 0;
	let mac = '';
	async function* content(): AsyncGenerator<Buffer> {
		for (const piece of pieces(head, answers)) {
			hmac.update(piece);
			bytes += piece.length;
			yield piece;
			await nextTurn();
		}
		const digest = hmac.digest();
		mac = digest.toString('hex');
		bytes += digest.length;
		yield digest;
	}
	await writeFileAtomic(path, content(), 0o600, fs);
	return {mac, bytes};
}

function* pieces(head: SnapshotHead, answers: Iterable<Buffer>): Generator<Buffer> {
	const text = Buffer.from(JSON.stringify(head));
	yield Buffer.concat([magic, lengthOf(text), text]);
	for (const answer of answers) {
		yield lengthOf(answer);
		for (let at = 0; at < answer.length; at += sliceBytes) yield answer.subarray(at, at + sliceBytes);
	}
	yield lengthOf(Buffer.alloc(0));
}

function lengthOf({length}: Buffer): Buffer {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32BE(length);
	return bytes;
}

/**
 * The file as it was written, by this machine; undefined when there is none.
 * @throws AgentError relay.snapshot_unusable saying why it is not to be used; system errors
 */
export async function readSnapshot(path: string, seal: Seal): Promise<SnapshotFile | undefined> {
	const bytes = await readBounded(path);
	if (!bytes) return undefined;
	refuseOtherFormat(path, bytes);
	if (bytes.length < magic.length + 4 + macBytes) throw unusable(path, 'is cut off');
	const body = bytes.subarray(0, bytes.length - macBytes);
	const mac = bytes.subarray(body.length);
	const isWhole = seal.start().update(body).digest().equals(mac);
	const [first, ...rest] = split(path, body);
	const head = parseHead(path, first);
	if (head.seal !== seal.id) throw unusable(path, 'was written by another machine, or its seal.key is gone');
	if (!isWhole) throw unusable(path, 'is damaged or was altered: its seal does not fit');
	return {head, mac: mac.toString('hex'), answers: rest.map(parseDeltaResponse), bytes: bytes.length};
}

function refuseOtherFormat(path: string, bytes: Buffer): void {
	if (bytes.subarray(0, magic.length).equals(magic)) return;
	const line = bytes.subarray(0, 64).toString('latin1').split('\n', 1)[0]!;
	const version = Number(line.slice(magicName.length));
	if (!line.startsWith(magicName) || !Number.isSafeInteger(version)) throw unusable(path, 'is no snapshot');
	throw unusable(path, `is of format ${version}, and this onramp reads ${formatVersion}`);
}

function split(path: string, body: Buffer): Buffer[] {
	const found: Buffer[] = [];
	for (let at = magic.length; ; ) {
		const length = at + 4 <= body.length ? body.readUInt32BE(at) : Number.POSITIVE_INFINITY;
		at += 4;
		if (length === 0 && at === body.length) return found;
		if (length === 0 || at + length > body.length) throw unusable(path, 'is damaged: its parts do not add up');
		found.push(body.subarray(at, at + length));
		at += length;
	}
}

function parseHead(path: string, bytes: Buffer | undefined): SnapshotHead {
	try {
		const {seal, owner, savedAt, base} = JSON.parse(String(bytes));
		return {
			seal: String(seal),
			owner: String(owner),
			savedAt: new Date(savedAt).toISOString(),
			...(base !== undefined && {base: String(base)}),
		};
	} catch {
		throw unusable(path, 'is damaged: its head cannot be read');
	}
}

async function readBounded(path: string): Promise<Buffer | undefined> {
	let file: Awaited<ReturnType<typeof open>>;
	try {
		file = await open(path, 'r');
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
	try {
		const {size} = await file.stat();
		if (size > largestSnapshot) throw unusable(path, `is larger than ${largestSnapshot} bytes`);
		return await file.readFile();
	} finally {
		await file.close();
	}
}

export function unusable(path: string, why: string): AgentError {
	return new AgentError('relay.snapshot_unusable', `${path} ${why}`, {
		hint: 'nothing to do once the control plane answers: the next one is written then',
	});
}
