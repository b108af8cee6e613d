import {buildDelta} from './envelope.ts';
import type {Slab} from './store.ts';

/** What is written of a resource. */
export interface Writable {
	readonly name: string;
	/** The encoded Any. */
	readonly any: Buffer;
	readonly size: number;
	/** Where it lies, if it is the cache's. */
	readonly slab?: Slab;
}

/** Resources of one type, as they are to be written. */
export interface Group {
	readonly url: string;
	readonly resources: readonly Writable[];
	readonly removed: readonly string[];
}

/** A piece of a file: large enough to be kept as it is when it is read again, small enough to be written in a moment. */
const pieceBytes = 1024 * 1024;

export function sizeOf(resources: readonly Pick<Writable, 'size'>[]): number {
	let bytes = 0;
	for (const {size} of resources) bytes += size;
	return bytes;
}

/**
 * In pieces, each an answer of its own: first the control plane's that still hold, as they came, then the rest. A name
 * is in one of them only.
 */
export function* encodeGroups(groups: readonly Group[]): Generator<Buffer> {
	for (const {url, resources, removed} of groups) {
		const answers = wholeAnswers(resources);
		for (const {bytes} of answers) yield bytes;
		const rest = answers.size === 0 ? resources : resources.filter(({slab}) => !slab || !answers.has(slab));
		if (rest.length > 0 || removed.length > 0 || answers.size === 0) yield* encodeRest(url, rest, removed);
	}
}

/** Those of which all that they brought is to be written. */
function wholeAnswers(resources: readonly Writable[]): ReadonlySet<Slab> {
	const wanted = new Map<Slab, number>();
	for (const {slab, size} of resources)
		if (slab?.answerBytes !== undefined) wanted.set(slab, (wanted.get(slab) ?? 0) + size);
	return new Set([...wanted.keys()].filter(slab => wanted.get(slab) === slab.answerBytes));
}

function* encodeRest(url: string, resources: readonly Writable[], removed: readonly string[]): Generator<Buffer> {
	for (let at = 0; ; ) {
		const from = at;
		let [anyBytes, nameBytes] = [0, 0];
		for (; at < resources.length && anyBytes < pieceBytes; at++) {
			anyBytes += resources[at]!.size;
			nameBytes += resources[at]!.name.length;
		}
		const answer = buildDelta({anyBytes, nameBytes, count: at - from});
		for (const {name, any} of resources.slice(from, at)) answer.add(name, '', any);
		const isLast = at === resources.length;
		yield answer.finish(url, '', isLast ? removed : []);
		if (isLast) break;
	}
}
