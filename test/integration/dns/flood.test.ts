import {type ChildProcess, fork} from 'node:child_process';
import {createSocket, type Socket} from 'node:dgram';
import {once} from 'node:events';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {connect} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import test, {type ExecutionContext} from 'ava';
import type {DnsStatus} from '../../../src/dns/index.ts';
import {isLong} from '../../support/mesh.ts';
import {meshTable, question, readAnswer, replyWith, startFakeServer} from '../../unit/dns/world.ts';

/** In the long run as many as are promised. */
const total = isLong ? 100_000 : 6000;
/** Of questions that wait for an answer at one time, as busy applications have them. */
const window = 200;
/** The C library gives up then. The server's own tries take 4 s. */
const answerMs = 5000;
/** One question in so many comes over TCP, on a connection of its own. */
const tcpEach = 8;
/** Beyond what it has at rest; what is in flight is bounded, so this does not grow with the number of questions. */
const mostGrowth = 160 * 2 ** 20;

interface Report {
	readonly rss: number;
	readonly status: DnsStatus;
}

async function startChild(t: ExecutionContext, upstreams: readonly number[]) {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-flood-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	const resolvConfPath = join(directory, 'resolv.conf');
	await writeFile(resolvConfPath, 'search corp.example\n');
	const config = {
		mode: 'capture',
		addresses: ['127.0.0.1'],
		port: 0,
		upstreams: upstreams.map(port => ({address: '127.0.0.1', port})),
		resolvConfPath,
		resolvedConfPath: join(directory, 'none'),
		timeoutMs: 4000,
		ttlSeconds: 30,
		mostInFlight: 2000,
		stateDir: join(directory, 'dns'),
		link: 'onramp-dns',
	};
	const input = JSON.stringify({config, table: meshTable.toString('base64')});
	const child = fork(fileURLToPath(new URL('server-child.ts', import.meta.url)), [input]);
	t.teardown(() => child.kill('SIGKILL'));
	const [{port}] = (await once(child, 'message')) as [{port: number}];
	return {child, port};
}

async function reportOf(child: ChildProcess): Promise<Report> {
	child.send('report');
	const [report] = (await once(child, 'message')) as [Report];
	return report;
}

const mixed: readonly ((turn: number) => {
	message: Buffer;
	expect: 'mesh' | 'nodata' | 'nxdomain' | 'foreign' | 'any';
})[] = [
	() => ({message: question('echo.demo.mesh'), expect: 'mesh'}),
	() => ({message: question('cart.corp.example'), expect: 'mesh'}),
	turn => ({message: question(`h${turn}.wild.mesh`), expect: 'mesh'}),
	() => ({message: question('db.shop.svc.cluster.local', 'AAAA'), expect: 'nodata'}),
	() => ({message: question('echo.demo.mesh', 'HTTPS'), expect: 'nodata'}),
	turn => ({message: question(`typo${turn}.shop.svc.cluster.local`), expect: 'nxdomain'}),
	turn => ({message: question(`w${turn}.example.com`), expect: 'foreign'}),
	turn => ({message: question(`w${turn % 7}.example.net`), expect: 'foreign'}),
	// An id is all that is right about it.
	turn => {
		const message = question('broken.example.com');
		message[12] = 0xc0 | (turn & 0x3f);
		return {message, expect: 'any'};
	},
];

/** Asks over one socket, by id. */
class Client {
	readonly #socket: Socket;
	readonly #waiting = new Map<number, (answer: Buffer) => void>();
	#id = 0;
	#isClosed = false;

	constructor(socket: Socket) {
		this.#socket = socket;
		socket.on('message', answer => this.#waiting.get(answer.readUInt16BE(0))?.(answer));
	}

	static async open(port: number): Promise<Client> {
		const socket = createSocket('udp4');
		await new Promise<void>(resolve => socket.connect(port, '127.0.0.1', resolve));
		return new Client(socket);
	}

	/** Asks again after two seconds, as resolvers do: a burst may not fit into the socket. */
	async ask(message: Buffer): Promise<Buffer | undefined> {
		// As many as ids allow; what is over is not asked.
		if (this.#waiting.size > 60_000) return undefined;
		do this.#id = (this.#id + 1) & 0xffff;
		while (this.#waiting.has(this.#id));
		const id = this.#id;
		message.writeUInt16BE(id, 0);
		const answer = await new Promise<Buffer | undefined>(resolve => {
			const again = setInterval(() => this.#send(message), 2000);
			const end = setTimeout(() => finish(undefined), answerMs);
			const finish = (found: Buffer | undefined) => {
				clearInterval(again);
				clearTimeout(end);
				resolve(found);
			};
			this.#waiting.set(id, finish);
			this.#send(message);
		});
		this.#waiting.delete(id);
		return answer;
	}

	#send(message: Buffer): void {
		if (!this.#isClosed) this.#socket.send(message);
	}

	close(): void {
		this.#isClosed = true;
		this.#socket.close();
	}
}

test('flood › mixed questions with a dead server, a slow one and broken packets are all answered in time', async t => {
	const dead = createSocket('udp4');
	await new Promise<void>(resolve => dead.bind(0, '127.0.0.1', resolve));
	t.teardown(() => dead.close());
	const slow = await startFakeServer(t, async query => {
		await new Promise(resolve => setTimeout(resolve, 700));
		return replyWith(query, 0, ['192.0.2.2']);
	});
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const {child, port} = await startChild(t, [dead.address().port, slow.port, good.port]);
	const client = await Client.open(port);
	t.teardown(() => client.close());
	const idle = await Promise.all(Array.from({length: 300}, () => openIdle(port)));
	t.teardown(() => {
		for (const socket of idle) socket.destroy();
	});
	const before = await reportOf(child);

	const wrong: string[] = [];
	let turn = 0;
	await Promise.all(
		Array.from({length: window}, async () => {
			while (turn < total) {
				const now = turn++;
				const {message, expect} = mixed[now % mixed.length]!(now);
				const isTcp = now % tcpEach === 0;
				const answer = await (isTcp ? askTcp(port, message) : client.ask(message));
				const problem = answer === undefined ? 'no answer' : problemOf(answer, expect);
				if (problem) wrong.push(`${now} (${expect}, ${isTcp ? 'TCP' : 'UDP'}): ${problem}`);
			}
		}),
	);
	t.deepEqual(wrong.slice(0, 5), [], `${wrong.length} of ${total}`);
	const leaked = [...slow.asked, ...good.asked].filter(name => !/\.example\.(com|net)$/.test(name));
	t.deepEqual(leaked, [], 'names of the mesh went to other servers');
	const after = await reportOf(child);
	t.is(after.status.inFlight, 0);
	t.true(after.rss - before.rss < mostGrowth, `memory grew by ${(after.rss - before.rss) >> 20} MiB`);
	t.is(after.status.upstreams[0]!.state, 'silent');
	t.true(after.status.connections <= 256);
});

test('flood › one that sends without end is refused in time, and names of the mesh are answered all the while', async t => {
	const dead = createSocket('udp4');
	await new Promise<void>(resolve => dead.bind(0, '127.0.0.1', resolve));
	t.teardown(() => dead.close());
	const {child, port} = await startChild(t, [dead.address().port]);
	const before = await reportOf(child);
	const flooder = await Client.open(port);
	const client = await Client.open(port);
	t.teardown(() => {
		flooder.close();
		client.close();
	});
	let isOver = false;
	const flood = (async () => {
		for (let sent = 0; sent < total * 2; ) {
			for (let burst = 0; burst < 100; burst++) void flooder.ask(question(`f${sent++}.example.com`));
			await new Promise(resolve => setTimeout(resolve, 1));
		}
		isOver = true;
	})();
	let answered = 0;
	while (!isOver || answered < 20) {
		const answer = await client.ask(question('echo.demo.mesh'));
		t.is(answer && problemOf(answer, 'mesh'), undefined);
		answered++;
	}
	await flood;
	const during = await reportOf(child);
	t.true(during.status.inFlight <= 2000);
	t.true((during.status.queries['upstream overload'] ?? 0) > 0);
	t.true(during.rss - before.rss < mostGrowth, `memory grew by ${(during.rss - before.rss) >> 20} MiB`);
});

function problemOf(message: Buffer, expect: string): string | undefined {
	const {code, values} = readAnswer(message);
	const seen = `${code} ${values.join()}`;
	switch (expect) {
		case 'mesh':
			return code === 'NOERROR' && /(^|,)(240\.240|10\.0)\./.test(values.join()) ? undefined : seen;
		case 'nodata':
			return code === 'NOERROR' && values.length === 0 ? undefined : seen;
		case 'nxdomain':
			return code === 'NXDOMAIN' ? undefined : seen;
		case 'foreign':
			return code === 'NOERROR' && values.join().startsWith('192.0.2.') ? undefined : seen;
		default:
			return undefined;
	}
}

/** The answer to one question, or undefined when there is none in time. */
async function askTcp(port: number, message: Buffer): Promise<Buffer | undefined> {
	const socket = connect(port, '127.0.0.1');
	const timer = setTimeout(() => socket.destroy(), answerMs);
	const prefix = Buffer.alloc(2);
	prefix.writeUInt16BE(message.length);
	socket.write(Buffer.concat([prefix, message]));
	try {
		let said = Buffer.alloc(0);
		for await (const chunk of socket) {
			said = Buffer.concat([said, chunk as Buffer]);
			if (said.length >= 2 && said.length >= 2 + said.readUInt16BE(0))
				return said.subarray(2, 2 + said.readUInt16BE(0));
		}
		return undefined;
	} catch {
		return undefined; // Reset is no answer.
	} finally {
		clearTimeout(timer);
		socket.destroy();
	}
}

/** A connection that sends half a message and then nothing. */
async function openIdle(port: number) {
	const socket = connect(port, '127.0.0.1');
	socket.on('error', () => {}); // ended by the server, as it should be
	await once(socket, 'connect');
	socket.write(Buffer.from([0, 40, 1]));
	return socket;
}
