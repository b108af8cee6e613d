import {createSocket} from 'node:dgram';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import type {DnsConfig} from '../../../src/config/types.ts';
import {type Dns, type DnsDeps, startDns} from '../../../src/dns/index.ts';
import {encodeName, parseQuery, type Query, renderQuery} from '../../../src/dns/message.ts';
import {parseType, type ReadRecord, readAnswers, renderCode} from '../../../src/dns/records.ts';
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';

export interface Entry {
	readonly addresses: readonly string[];
	readonly registry?: string;
	readonly shortName?: string;
	readonly namespace?: string;
	readonly otherNames?: readonly string[];
}

/** istio.networking.nds.v1.NameTable, encoded. */
export function encodeTable(hosts: Readonly<Record<string, Entry>>): Buffer {
	const writer = new FieldWriter();
	for (const [
		host,
		{addresses, registry = 'External', shortName = '', namespace = '', otherNames = []},
	] of Object.entries(hosts))
		writer.message(1, entry =>
			entry
				.string(1, host)
				.message(2, info =>
					info
						.strings(1, addresses)
						.string(2, registry)
						.string(3, shortName)
						.string(4, namespace)
						.strings(5, otherNames),
				),
		);
	return writer.finish();
}

export const meshTable = encodeTable({
	'echo.demo.mesh': {addresses: ['240.240.0.1', '2001:2::1']},
	'v4.demo.mesh': {addresses: ['240.240.0.2']},
	'*.wild.mesh': {addresses: ['240.240.0.3']},
	'*.deep.wild.mesh': {addresses: ['240.240.0.4']},
	'reviews.default.svc.cluster.local': {
		addresses: ['10.0.0.1'],
		registry: 'Kubernetes',
		shortName: 'reviews',
		namespace: 'default',
		otherNames: ['reviews.alias'],
	},
	'cart.shop.svc.cluster.local': {
		addresses: ['10.0.0.2'],
		registry: 'Kubernetes',
		shortName: 'cart',
		namespace: 'shop',
	},
	'db.shop.svc.cluster.local': {
		addresses: ['10.1.0.1', '10.1.0.2', '10.1.0.3'],
		registry: 'Kubernetes',
		shortName: 'db',
		namespace: 'shop',
	},
	'many.shop.svc.cluster.local': {
		addresses: Array.from({length: 200}, (_, index) => `10.2.${index >> 8}.${index & 255}`),
		registry: 'Kubernetes',
		shortName: 'many',
		namespace: 'shop',
	},
});

export interface World {
	readonly directory: string;
	readonly metrics: Metrics;
	readonly readiness: Readiness;
	readonly dns: Dns;
	readonly port: number;
}

export async function startWorld(
	t: ExecutionContext,
	config: Partial<DnsConfig> = {},
	deps: Partial<DnsDeps> & {readonly resolvConf?: string; readonly directory?: string} = {},
): Promise<World> {
	const directory = deps.directory ?? (await mkdtemp(join(tmpdir(), 'onramp-dns-')));
	if (!deps.directory) t.teardown(() => rm(directory, {recursive: true, force: true}));
	const resolvConfPath = join(directory, 'resolv.conf');
	if (deps.resolvConf !== undefined) await writeFile(resolvConfPath, deps.resolvConf);
	const metrics = new Metrics();
	const readiness = new Readiness(['dns']);
	const dns = await startDns({
		config: {
			mode: 'capture',
			addresses: ['127.0.0.1'],
			port: 0,
			upstreams: [],
			resolvConfPath,
			resolvedConfPath: join(directory, 'resolved.conf'),
			timeoutMs: 4000,
			ttlSeconds: 30,
			meshDomains: undefined,
			mostInFlight: 2000,
			stateDir: join(directory, 'dns'),
			link: 'onramp-dns',
			...config,
		},
		workload: {namespace: 'shop', domain: 'shop.svc.cluster.local'},
		clock: systemClock,
		random: Math.random,
		metrics,
		log: silentLogger,
		gate: readiness.gate('dns'),
		...deps,
	});
	t.teardown(() => dns.stop());
	return {directory, metrics, readiness, dns, port: dns.listeners[0]!.port};
}

export interface Answer {
	readonly code: string;
	readonly records: readonly ReadRecord[];
	/** `value` of each record. */
	readonly values: readonly string[];
	readonly isAuthoritative: boolean;
	readonly isTruncated: boolean;
	readonly authorities: number;
	readonly message: Buffer;
}

export function readAnswer(message: Buffer): Answer {
	const records = readAnswers(message);
	return {
		code: renderCode(message),
		records,
		values: records.map(({value}) => value),
		isAuthoritative: (message[2]! & 0x04) !== 0,
		isTruncated: (message[2]! & 0x02) !== 0,
		authorities: message.readUInt16BE(8),
		message,
	};
}

let lastId = 0;

export function question(name: string, type = 'A'): Buffer {
	lastId = (lastId + 1) & 0xffff;
	const message = renderQuery(lastId, encodeName(name)!, parseType(type)!);
	// As the case was given.
	const spelt = Buffer.from(encodeName(name)!, 'latin1');
	let position = 0;
	for (const label of name.replace(/\.$/, '').split('.')) {
		spelt.write(label, position + 1, 'latin1');
		position += 1 + label.length;
	}
	spelt.copy(message, 12);
	return message;
}

/** Without EDNS. */
export function plainQuestion(name: string, type = 'A'): Buffer {
	const message = question(name, type);
	message[11] = 0;
	return message.subarray(0, message.length - 11);
}

const deadlineMs = 30_000;

/** Sends one packet and waits for the answer; undefined when none comes within the time. */
export function askUdp(port: number, message: Buffer, waitMs = deadlineMs): Promise<Buffer | undefined> {
	return new Promise((resolve, reject) => {
		const socket = createSocket('udp4');
		const timer = setTimeout(() => finish(undefined), waitMs);
		const finish = (answer: Buffer | undefined) => {
			clearTimeout(timer);
			socket.close();
			resolve(answer);
		};
		socket.on('error', reject);
		socket.on('message', finish);
		socket.send(message, port, '127.0.0.1');
	});
}

export async function ask(world: World, name: string, type = 'A'): Promise<Answer> {
	const message = question(name, type);
	const answer = await askUdp(world.port, message);
	if (!answer) throw new Error(`no answer for ${name} ${type}`);
	if (answer.readUInt16BE(0) !== message.readUInt16BE(0)) throw new Error('another id');
	return readAnswer(answer);
}

export interface FakeServer {
	readonly port: number;
	/** Names asked for, in order, without probes. */
	readonly asked: string[];
	close(): Promise<void>;
}

/** What a fake server does with a question; undefined = nothing. */
export type Behaviour = (query: Query, isTcp: boolean) => Buffer | undefined | Promise<Buffer | undefined>;

const isProbe = (key: string): boolean => key.includes('onramp-probe');

/** A DNS server on UDP and TCP of 127.0.0.1. */
export async function startFakeServer(t: ExecutionContext, behave: Behaviour, port = 0): Promise<FakeServer> {
	const asked: string[] = [];
	const answer = async (message: Buffer, isTcp: boolean) => {
		const query = parseQuery(message) as Query;
		if (!isProbe(query.key)) asked.push(nameOf(query));
		return behave(query, isTcp);
	};
	let isClosed = false;
	const udp = createSocket('udp4');
	let bound = port;
	for (;;) {
		if (port === 0) bound = await closedPort();
		const error = await new Promise<Error | undefined>(resolve => {
			udp.once('error', resolve);
			udp.bind(bound, '127.0.0.1', () => {
				udp.off('error', resolve);
				resolve(undefined);
			});
		});
		if (!error) break;
		// Another test was as lucky with the same number.
		if (port !== 0) throw error;
	}
	udp.on('message', async (message, from) => {
		const reply = await answer(message, false);
		if (reply && !isClosed) udp.send(reply, from.port, from.address);
	});
	const sockets = new Set<Socket>();
	const tcp = createServer(socket => {
		sockets.add(socket);
		socket.on('error', () => {});
		socket.on('data', async chunk => {
			// Questions are short: they come whole.
			let data = chunk as Buffer;
			while (data.length > 2) {
				const end = 2 + data.readUInt16BE(0);
				const reply = await answer(data.subarray(2, end), true);
				data = data.subarray(end);
				if (!reply) continue;
				const head = Buffer.alloc(2);
				head.writeUInt16BE(reply.length);
				socket.write(Buffer.concat([head, reply]));
			}
		});
	});
	await new Promise<void>(resolve => tcp.listen(bound, '127.0.0.1', resolve));
	const close = async () => {
		if (isClosed) return;
		isClosed = true;
		for (const socket of sockets) socket.destroy();
		await Promise.all([
			new Promise<void>(resolve => udp.close(() => resolve())),
			new Promise<void>(resolve => tcp.close(() => resolve())),
		]);
	};
	t.teardown(close);
	return {port: bound, asked, close};
}

/** One that is free now, and that the system gives to nobody who asks for any port (ip_local_port_range). */
export async function closedPort(): Promise<number> {
	for (;;) {
		const port = 16_000 + Math.floor(Math.random() * 16_000);
		const socket = createSocket('udp4');
		const isFree = await new Promise<boolean>(resolve => {
			socket.once('error', () => resolve(false));
			socket.bind(port, '127.0.0.1', () => resolve(true));
		});
		await new Promise<void>(resolve => socket.close(() => resolve()));
		if (isFree) return port;
	}
}

export const nameOf = ({key}: Query): string => {
	const labels: string[] = [];
	for (let position = 0; key.charCodeAt(position) > 0; position += 1 + key.charCodeAt(position))
		labels.push(key.slice(position + 1, position + 1 + key.charCodeAt(position)));
	return labels.join('.');
};

/** An answer with these addresses, or a bare code. */
export function replyWith(query: Query, code: number, addresses: readonly string[] = []): Buffer {
	const head = Buffer.from(query.message.subarray(0, query.questionEnd));
	head[2] = 0x81;
	head[3] = 0x80 | code;
	head.writeUInt16BE(addresses.length, 6);
	head.fill(0, 8, 12);
	const records = addresses.map(address =>
		Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split('.').map(Number)]),
	);
	return Buffer.concat([head, ...records]);
}

export async function until(holds: () => boolean, what: string, waitMs = 20_000): Promise<void> {
	const deadline = performance.now() + waitMs;
	while (!holds()) {
		if (performance.now() > deadline) throw new Error(`not within ${waitMs} ms: ${what}`);
		await new Promise(resolve => setTimeout(resolve, 5));
	}
}
