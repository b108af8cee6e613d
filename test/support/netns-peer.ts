// Runs inside a network namespace as some user, and does there what it is told, one JSON line a command on stdin.
import {createSocket} from 'node:dgram';
import {createServer as createHttpServer, get as httpGet} from 'node:http';
import {connect, createServer, type Socket} from 'node:net';
import {createInterface} from 'node:readline';
import {type Load, startLoad} from './load.ts';

type Fields = Readonly<Record<string, unknown>>;

const seen: Fields[] = [];
const held = new Map<number, Socket>();

/** Says to each client whether its connection came through Envoy, which sends a PROXY line first. */
function listen({host, port}: Fields): Promise<Fields> {
	const server = createServer(socket => {
		let text = '';
		socket.on('error', () => {});
		socket.on('data', chunk => {
			text += chunk.toString('latin1');
			if (text.endsWith('reset\n')) socket.resetAndDestroy();
			if (!text.endsWith('hi\n')) return;
			const connection = {via: text.startsWith('PROXY ') ? 'envoy' : 'direct', peer: socket.remoteAddress, port};
			seen.push(connection);
			text = '';
			socket.write(`${JSON.stringify(connection)}\n`);
		});
	});
	return new Promise((resolve, reject) => {
		server.once('error', reject);
		server.listen({host: String(host), port: Number(port), ipv6Only: String(host) === '::'}, () => resolve({}));
	});
}

function ask({host, port, from, fromPort, hold, say = 'hi', withinMs = 10_000}: Fields): Promise<Fields> {
	return new Promise(resolve => {
		const socket = connect({
			host: String(host),
			port: Number(port),
			...(from ? {localAddress: String(from)} : {}),
			...(fromPort ? {localPort: Number(fromPort)} : {}),
		});
		let text = '';
		const end = (answer: Fields) => {
			if (hold && answer['via']) held.set(Number(hold), socket);
			else socket.destroy();
			resolve(answer);
		};
		socket.setTimeout(Number(withinMs), () => end({error: 'timeout'}));
		socket.once('error', (error: NodeJS.ErrnoException) => end({error: error.code ?? error.message}));
		socket.on('end', () => end({error: 'closed'}));
		socket.on('data', chunk => {
			text += chunk.toString();
			if (text.endsWith('\n')) end(JSON.parse(text) as Fields);
		});
		socket.write(`${say}\n`);
	});
}

function askAgain({hold, say = 'hi', withinMs = 10_000}: Fields): Promise<Fields> {
	const socket = held.get(Number(hold))!;
	return new Promise(resolve => {
		const timer = setTimeout(() => resolve({error: 'timeout'}), Number(withinMs));
		const end = (answer: Fields) => {
			clearTimeout(timer);
			resolve(answer);
		};
		socket.removeAllListeners('data');
		socket.once('error', (error: NodeJS.ErrnoException) => end({error: error.code}));
		socket.once('close', () => end({error: 'closed'}));
		socket.on('data', chunk => end(JSON.parse(chunk.toString()) as Fields));
		socket.write(`${say}\n`);
	});
}

/** What becomes of a connection on which nobody speaks: `closed`, the error that ended it, or `timeout`. */
function awaitEnd({hold, withinMs}: Fields): Promise<Fields> {
	const socket = held.get(Number(hold))!;
	if (socket.destroyed) return Promise.resolve({error: socket.errored ? systemCodeOf(socket.errored) : 'closed'});
	return new Promise(resolve => {
		const timer = setTimeout(() => resolve({error: 'timeout'}), Number(withinMs));
		socket.removeAllListeners('timeout');
		socket.once('error', error => resolve({error: systemCodeOf(error)}));
		socket.once('close', () => {
			clearTimeout(timer);
			resolve({error: 'closed'});
		});
	});
}

const systemCodeOf = (error: NodeJS.ErrnoException): string => error.code ?? error.message;

/** Names that somebody has asked us for over UDP. */
const asked = new Set<string>();

function nameIn(question: Buffer): string {
	const labels: string[] = [];
	for (let at = 12; question[at]; at += question[at]! + 1)
		labels.push(question.toString('latin1', at + 1, at + 1 + question[at]!));
	return labels.join('.').toLowerCase();
}

/** Answers every question, over UDP and TCP, with a message that says who did, in place of records. */
function serveNames({host, port, name, silent}: Fields): Promise<Fields> {
	const answer = (question: Buffer) =>
		Buffer.concat([
			question.subarray(0, 2),
			Buffer.from([0x81, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]),
			Buffer.from(String(name)),
		]);
	const socket = createSocket(String(host).includes(':') ? 'udp6' : 'udp4');
	socket.on('message', (question, peer) => {
		asked.add(nameIn(question));
		if (!silent) socket.send(answer(question), peer.port, peer.address);
	});
	const server = createServer(client => {
		client.on('error', () => {});
		client.on('data', framed => {
			const message = answer(framed.subarray(2));
			if (!silent) client.end(Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message]));
		});
	});
	return new Promise((resolve, reject) => {
		socket.once('error', reject);
		server.once('error', reject);
		socket.bind(Number(port), String(host), () => server.listen(Number(port), String(host), () => resolve({})));
	});
}

const question = Buffer.from([7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0x61, 0, 0, 1, 0, 1]);

function askName({server, protocol = 'udp', fromPort = 0, withinMs = 10_000}: Fields): Promise<Fields> {
	return new Promise(resolve => {
		const timer = setTimeout(() => resolve({error: 'timeout'}), Number(withinMs));
		const end = (answer: Fields) => {
			clearTimeout(timer);
			resolve(answer);
		};
		if (protocol === 'udp') {
			const socket = createSocket(String(server).includes(':') ? 'udp6' : 'udp4');
			socket.on('error', (error: NodeJS.ErrnoException) => end({error: error.code}));
			socket.on('message', message => {
				socket.close();
				end({name: message.subarray(12).toString()});
			});
			socket.bind(Number(fromPort), () => socket.connect(53, String(server), () => socket.send(question)));
			return;
		}
		const socket = connect(53, String(server), () => {
			socket.write(Buffer.concat([Buffer.from([0, question.length]), question]));
		});
		socket.on('error', (error: NodeJS.ErrnoException) => end({error: error.code}));
		socket.on('data', message => end({name: message.subarray(14).toString()}));
	});
}

/** An application that knows nothing of meshes, and tells what it saw. */
function serveHttp({port, name}: Fields): Promise<Fields> {
	const server = createHttpServer((request, response) => {
		const certificate = String(request.headers['x-forwarded-client-cert'] ?? '');
		const [, caller = ''] = /URI=([^;,]+)/.exec(certificate) ?? [];
		response.end(JSON.stringify({app: name, caller, peer: request.socket.remoteAddress}));
	});
	// Longer than Envoy keeps an idle connection (5 min): with Node's 5 s, a request may meet the end of the connection it is
	// sent on.
	server.keepAliveTimeout = 600_000;
	return new Promise((resolve, reject) => {
		server.once('error', reject);
		server.listen(Number(port), () => resolve({}));
	});
}

function get({url, withinMs = 10_000}: Fields): Promise<Fields> {
	return new Promise(resolve => {
		const request = httpGet(String(url), {agent: false, timeout: Number(withinMs)}, response => {
			const chunks: Buffer[] = [];
			response.on('data', (chunk: Buffer) => chunks.push(chunk));
			response.on('end', () => {
				const text = Buffer.concat(chunks).toString();
				const {statusCode: status, headers} = response;
				resolve(status === 200 ? (JSON.parse(text) as Fields) : {status, text, headers});
			});
		});
		request.on('timeout', () => request.destroy(new Error('timeout')));
		request.on('error', (error: NodeJS.ErrnoException) => resolve({error: error.code ?? error.message}));
	});
}

let load: Load | undefined;

const beginLoad = ({host, port, perSecond}: Fields): Fields => {
	load = startLoad({host: String(host), port: Number(port), perSecond: Number(perSecond)});
	return {};
};

const commands: Readonly<Record<string, (fields: Fields) => Promise<unknown> | unknown>> = {
	listen,
	ask,
	askAgain,
	awaitEnd,
	serveNames,
	askName,
	serveHttp,
	get,
	startLoad: beginLoad,
	stopLoad: () => load?.stop(),
	whoAmI: () => ({pid: process.pid}),
	seen: () => [...seen],
	asked: () => [...asked],
	forget: () => {
		seen.length = 0;
		return {};
	},
};

createInterface({input: process.stdin})
	.on('line', line => {
		const {id, command, ...fields} = JSON.parse(line) as {id: number; command: string};
		Promise.resolve()
			.then(() => commands[command]!(fields))
			.then(
				result => console.log(JSON.stringify({id, result})),
				(error: unknown) => console.log(JSON.stringify({id, error: String(error)})),
			);
	})
	.on('close', () => process.exit(0));
console.log(JSON.stringify({id: 0, result: {pid: process.pid}}));
