// Asks a DNS server as fast as it answers, from a process of its own: each client has a socket and one question in flight.
// node scripts/bench/dns-client.ts PORT CLIENTS MS NAME… → {"count", "lost", "latenciesUs", "ms"} as JSON.
import {createSocket} from 'node:dgram';
import {encodeName, renderQuery, type} from '../../src/dns/message.ts';

const [port = '', clients = '', ms = '', ...names] = process.argv.slice(2);
const questions = names.map(name => renderQuery(0, encodeName(name)!, type.a));
const untilMs = performance.now() + Number(ms);
/** As the C library; long enough that only what is lost is counted so. */
const lostMs = 5000;
const latenciesUs: number[] = [];
let lost = 0;
let turn = 0;

async function ask(): Promise<void> {
	const socket = createSocket('udp4');
	await new Promise<void>(resolve => socket.connect(Number(port), '127.0.0.1', resolve));
	let onAnswer = (_message: Buffer) => {};
	socket.on('message', message => onAnswer(message));
	socket.on('error', () => {}); // counted as lost
	for (let id = 1; performance.now() < untilMs; id = (id + 1) & 0xffff) {
		const message = Buffer.from(questions[turn++ % questions.length]!);
		message.writeUInt16BE(id, 0);
		const fromMs = performance.now();
		const isAnswered = await new Promise<boolean>(resolve => {
			const timer = setTimeout(() => resolve(false), lostMs);
			onAnswer = answer => {
				if (answer.readUInt16BE(0) !== id) return;
				clearTimeout(timer);
				if ((answer[3]! & 0x0f) !== 0 || answer[7] === 0) throw new Error(`no address in ${answer.toString('hex')}`);
				resolve(true);
			};
			socket.send(message);
		});
		if (isAnswered) latenciesUs.push(Math.round((performance.now() - fromMs) * 1000));
		else lost++;
	}
	socket.close();
}

const startedMs = performance.now();
await Promise.all(Array.from({length: Number(clients)}, ask));
const tookMs = performance.now() - startedMs;
console.log(JSON.stringify({count: latenciesUs.length, lost, latenciesUs, ms: tookMs}));
