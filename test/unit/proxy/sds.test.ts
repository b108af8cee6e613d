import {mkdtemp, rename, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {Client, type ClientDuplexStream, credentials} from '@grpc/grpc-js';
import test, {type ExecutionContext} from 'ava';
import {Secret, silentLogger} from '../../../src/log.ts';
import {FieldReader, FieldWriter} from '../../../src/proto/wire.ts';
import {type SecretMaterial, startSds, startXdsSocket} from '../../../src/proxy/xds.ts';
import {makeMaterial} from '../../integration/proxy/certificates.ts';

const asIs = (message: Buffer) => message;
const materialOf = (name: string): SecretMaterial => ({
	chainPem: `chain ${name}`,
	keyPem: new Secret(`key ${name}`),
	trustBundlePem: `roots ${name}`,
});

interface Answer {
	readonly version: string;
	readonly nonce: string;
	/** Name → PEM texts found in the secret, joined by a blank. */
	readonly secrets: Readonly<Record<string, string>>;
}

/** Strings in a message, whatever its fields are called. */
function textsIn(reader: FieldReader, depth: number): string[] {
	const texts: string[] = [];
	while (reader.next()) {
		if (reader.type !== 2) continue;
		if (depth === 0) texts.push(reader.string());
		else texts.push(...textsIn(reader.message(), depth - 1));
	}
	return texts;
}

function parseSecret(bytes: Buffer): [string, string] {
	let name = '';
	let texts: string[] = [];
	for (const field = new FieldReader(bytes); field.next(); ) {
		if (field.number === 1) name = field.string();
		else texts = textsIn(field.message(), 1);
	}
	return [name, texts.join(' ')];
}

function parseAnswer(message: Buffer, isDelta: boolean): Answer {
	const answer = {version: '', nonce: '', secrets: {} as Record<string, string>};
	const addAny = (any: FieldReader) => {
		while (any.next()) {
			if (any.number !== 2) continue;
			const [name, text] = parseSecret(any.bytes());
			answer.secrets[name] = text;
		}
	};
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) answer.version = field.string();
		else if (field.number === 5) answer.nonce = field.string();
		else if (field.number === 2 && !isDelta) addAny(field.message());
		else if (field.number === 2) {
			for (const resource = field.message(); resource.next(); ) if (resource.number === 2) addAny(resource.message());
		}
	}
	return answer;
}

class Peer {
	readonly call: ClientDuplexStream<Buffer, Buffer>;
	readonly answers: Answer[] = [];
	readonly #client: Client;
	constructor(path: string, method: 'StreamSecrets' | 'DeltaSecrets') {
		this.#client = new Client(`unix:${path}`, credentials.createInsecure());
		const url = `/envoy.service.secret.v3.SecretDiscoveryService/${method}`;
		this.call = this.#client.makeBidiStreamRequest(url, asIs, asIs);
		this.call.on('data', message => this.answers.push(parseAnswer(message, method === 'DeltaSecrets')));
		this.call.on('error', () => {});
	}
	sotw(names: readonly string[], nonce = '', error?: string): void {
		const writer = new FieldWriter().strings(3, names).string(5, nonce);
		if (error) writer.message(6, status => status.uint(1, 13).string(2, error));
		this.call.write(writer.finish());
	}
	delta(
		subscribe: readonly string[],
		versions: Readonly<Record<string, string>> = {},
		unsubscribe: string[] = [],
		nonce = '',
	): void {
		const writer = new FieldWriter().strings(3, subscribe).strings(4, unsubscribe).string(6, nonce);
		for (const [key, value] of Object.entries(versions))
			writer.message(5, entry => entry.string(1, key).string(2, value));
		this.call.write(writer.finish());
	}
	async answer(count: number): Promise<Answer> {
		const deadline = performance.now() + 30_000;
		while (this.answers.length < count) {
			if (performance.now() > deadline) throw new Error(`${this.answers.length} answers, not ${count}`);
			await new Promise(resolve => setTimeout(resolve, 5));
		}
		return this.answers[count - 1]!;
	}
	close(): void {
		this.call.cancel();
		this.#client.close();
	}
}

async function makeWorld(t: ExecutionContext, first?: SecretMaterial, systemRootPaths?: string[]) {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-sds-'));
	let material = first;
	const listeners = new Set<() => void>();
	const source = {
		current: () => material,
		onChange(listener: () => void) {
			listeners.add(listener);
			return () => listeners.delete(listener);
		},
	};
	const sds = startSds({source, log: silentLogger, ...(systemRootPaths ? {systemRootPaths} : {})});
	const path = join(folder, 'xds.sock');
	const socket = await startXdsSocket({path, services: [sds], log: silentLogger});
	const peers: Peer[] = [];
	t.teardown(async () => {
		for (const peer of peers) peer.close();
		await socket.stop();
		await sds.stop();
		await rm(folder, {recursive: true});
	});
	return {
		folder,
		sds,
		publish(next: SecretMaterial) {
			material = next;
			for (const listener of listeners) listener();
		},
		open(method: 'StreamSecrets' | 'DeltaSecrets') {
			const peer = new Peer(path, method);
			peers.push(peer);
			return peer;
		},
	};
}

test('sds › answers certificate and roots, silent on the ACK, and pushes both when they change', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const peer = world.open('StreamSecrets');
	peer.sotw(['default', 'ROOTCA']);
	const first = await peer.answer(1);
	t.deepEqual(first.secrets, {default: 'chain 1 key 1', ROOTCA: 'roots 1'});
	peer.sotw(['default', 'ROOTCA'], first.nonce);
	world.publish(materialOf('2'));
	const second = await peer.answer(2);
	t.deepEqual(second.secrets, {default: 'chain 2 key 2', ROOTCA: 'roots 2'});
	t.not(second.version, first.version);
});

test('sds › tells which secrets Envoy has as they are now', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const state = (name: string) => world.sds.status()[name];
	const become = async (name: string, streams: number, isCurrent: boolean) => {
		const deadline = performance.now() + 30_000;
		while (state(name)?.streams !== streams || state(name)?.isCurrent !== isCurrent) {
			if (performance.now() > deadline) throw new Error(JSON.stringify(world.sds.status()));
			await new Promise(resolve => setTimeout(resolve, 5));
		}
	};
	const peer = world.open('StreamSecrets');
	peer.sotw(['default', 'ROOTCA']);
	const first = await peer.answer(1);
	t.deepEqual(world.sds.status(), {
		default: {streams: 1, isCurrent: false},
		ROOTCA: {streams: 1, isCurrent: false},
	});
	peer.sotw(['default', 'ROOTCA'], first.nonce);
	await become('default', 1, true);
	world.publish({...materialOf('2'), trustBundlePem: 'roots 1'});
	const second = await peer.answer(2);
	t.deepEqual(world.sds.status(), {default: {streams: 1, isCurrent: false}, ROOTCA: {streams: 1, isCurrent: true}});
	// Refused, and what follows is no answer to it.
	peer.sotw(['default', 'ROOTCA'], second.nonce, 'bad certificate');
	world.publish({...materialOf('2'), trustBundlePem: 'roots 2'});
	peer.sotw(['default', 'ROOTCA'], (await peer.answer(3)).nonce);
	await become('ROOTCA', 1, true);
	t.false(state('default')!.isCurrent);

	const other = world.open('DeltaSecrets');
	other.delta(['default']);
	await other.answer(1);
	await become('default', 2, false);
	peer.close();
	other.delta([], {}, [], (await other.answer(1)).nonce);
	await become('default', 1, true);
});

test('sds › pushes only what changed', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const peer = world.open('StreamSecrets');
	peer.sotw(['default', 'ROOTCA']);
	await peer.answer(1);
	world.publish({...materialOf('2'), trustBundlePem: 'roots 1'});
	t.deepEqual((await peer.answer(2)).secrets, {default: 'chain 2 key 2'});
});

test('sds › a name that is added is answered alone; one that is dropped is pushed no more', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const peer = world.open('StreamSecrets');
	peer.sotw(['default']);
	const {nonce} = await peer.answer(1);
	peer.sotw(['default', 'ROOTCA'], nonce);
	const second = await peer.answer(2);
	t.deepEqual(second.secrets, {ROOTCA: 'roots 1'});
	peer.sotw(['ROOTCA'], second.nonce);
	peer.sotw(['ROOTCA', 'default'], second.nonce);
	t.deepEqual((await peer.answer(3)).secrets, {default: 'chain 1 key 1'}, 'dropped, then wanted again');
});

test('sds › a request with an old nonce changes nothing', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const peer = world.open('StreamSecrets');
	peer.sotw(['default']);
	await peer.answer(1);
	peer.sotw(['ROOTCA'], 'old');
	world.publish(materialOf('2'));
	t.deepEqual((await peer.answer(2)).secrets, {default: 'chain 2 key 2'});
});

test('sds › a rejected secret is not sent again, the next one is', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const peer = world.open('StreamSecrets');
	peer.sotw(['default']);
	const {nonce} = await peer.answer(1);
	peer.sotw(['default'], nonce, 'bad certificate');
	world.publish(materialOf('2'));
	await peer.answer(2);
	t.is(peer.answers.length, 2);
});

for (const method of ['StreamSecrets', 'DeltaSecrets'] as const) {
	test(`sds › ${method}: a name that is not there yet is answered when it is`, async t => {
		const world = await makeWorld(t);
		const peer = world.open(method);
		if (method === 'StreamSecrets') peer.sotw(['no-such-secret', 'default']);
		else peer.delta(['no-such-secret', 'default']);
		world.publish(materialOf('1'));
		t.deepEqual((await peer.answer(1)).secrets, {default: 'chain 1 key 1'});
	});
}

test('sds › versions are the same from another agent with the same material', async t => {
	const versions = await Promise.all(
		[1, 2].map(async () => {
			const peer = (await makeWorld(t, materialOf('1'))).open('StreamSecrets');
			peer.sotw(['default']);
			return (await peer.answer(1)).version;
		}),
	);
	t.is(versions[0], versions[1]);
});

test('sds › delta: a peer that returns with what is current gets the empty answer, with what is old the new one', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const first = world.open('DeltaSecrets');
	first.delta(['default']);
	const {version, secrets} = await first.answer(1);
	t.deepEqual(secrets, {default: 'chain 1 key 1'});
	const current = world.open('DeltaSecrets');
	current.delta(['default'], {default: version});
	t.deepEqual((await current.answer(1)).secrets, {});
	const old = world.open('DeltaSecrets');
	old.delta(['default'], {default: 'old'});
	t.deepEqual((await old.answer(1)).secrets, {default: 'chain 1 key 1'});
	current.delta(['ROOTCA'], {}, ['default']);
	t.deepEqual((await current.answer(2)).secrets, {ROOTCA: 'roots 1'});
	world.publish(materialOf('2'));
	t.deepEqual((await current.answer(3)).secrets, {ROOTCA: 'roots 2'}, 'the unsubscribed one stays away');
});

test('sds › a malformed request ends that stream with INVALID_ARGUMENT and no other', async t => {
	const world = await makeWorld(t, materialOf('1'));
	const good = world.open('StreamSecrets');
	good.sotw(['default']);
	await good.answer(1);
	const bad = world.open('StreamSecrets');
	const error = new Promise<{code: number}>(resolve => bad.call.once('error', resolve as never));
	bad.call.write(Buffer.from([0xff, 0xff]));
	t.is((await error).code, 3);
	world.publish(materialOf('2'));
	await good.answer(2);
});

test('sds › a pair on disk is served when chain and key fit, and pushed when both were replaced', async t => {
	const world = await makeWorld(t);
	const [first, second] = [makeMaterial('first'), makeMaterial('second')];
	const chain = join(world.folder, 'chain.pem');
	const key = join(world.folder, 'key.pem');
	await writeFile(chain, first.chainPem);
	await writeFile(key, second.keyPem.reveal());
	const peer = world.open('StreamSecrets');
	const name = `file-cert:${chain}~${key}`;
	peer.sotw([name]);
	// The pair does not fit until this.
	await writeFile(`${key}.new`, first.keyPem.reveal());
	await rename(`${key}.new`, key);
	t.deepEqual((await peer.answer(1)).secrets, {[name]: `${first.chainPem} ${first.keyPem.reveal()}`});
	await writeFile(chain, second.chainPem);
	await writeFile(key, second.keyPem.reveal());
	t.deepEqual((await peer.answer(2)).secrets, {[name]: `${second.chainPem} ${second.keyPem.reveal()}`});
});

test('sds › roots come from a file or from the first place where the system keeps them', async t => {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-roots-'));
	t.teardown(() => rm(folder, {recursive: true}));
	const path = join(folder, 'roots.pem');
	const roots = makeMaterial('root').trustBundlePem;
	await writeFile(path, roots);
	const world = await makeWorld(t, undefined, [join(folder, 'absent.pem'), path]);
	const peer = world.open('StreamSecrets');
	peer.sotw(['file-root:system']);
	t.deepEqual((await peer.answer(1)).secrets, {'file-root:system': roots});
	const other = world.open('StreamSecrets');
	other.sotw([`file-root:${path}`]);
	t.deepEqual((await other.answer(1)).secrets, {[`file-root:${path}`]: roots});
});
