// Short connections, one after another and many at once, as an application makes them; each in one of several ways,
// some of which leave entries in connection tracking that a later connection with the same ports meets.
// argv: [2] a `TrafficPlan` as JSON. Prints a `TrafficTally` as JSON each second, and the last one when stdin ends.
import {connect, type Socket} from 'node:net';
import {seededRandom} from '../support/seeded-random.ts';

export interface TrafficPlan {
	readonly seed: number;
	/** Open at once. */
	readonly atOnce: number;
	/** At most so many a second. */
	readonly perSecond: number;
	/** Outside the mesh. */
	readonly outside: {readonly hosts: readonly string[]; readonly ports: readonly number[]};
	/** Share of connections that are requests to the mesh, and whom they are answered by. */
	readonly mesh: {readonly share: number; readonly host: string; readonly address: string; readonly caller: string};
	/** Speaks HTTP outside the mesh too. */
	readonly isHttp?: boolean;
}

export interface TrafficTally {
	readonly opened: number;
	readonly answered: number;
	/** Ended on purpose without an answer: reset by either end, or given up. */
	readonly broken: number;
	/** Mesh requests whose answer names another caller, or none. */
	readonly strange: number;
	/** By error code. */
	readonly failed: Readonly<Record<string, number>>;
}

type Way = 'ask' | 'reset by the server' | 'reset by the client' | 'given up';

const plan = JSON.parse(process.argv[2]!) as TrafficPlan;
const random = seededRandom(plan.seed);
const tally = {opened: 0, answered: 0, broken: 0, strange: 0, failed: {} as Record<string, number>};
const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;

function wayOf(chance: number): Way {
	if (chance < 0.9) return 'ask';
	if (chance < 0.94) return 'reset by the server';
	return chance < 0.98 ? 'reset by the client' : 'given up';
}

/** Resolves to whether the next one may follow at once. */
function once(): Promise<boolean> {
	tally.opened++;
	const isMesh = random() < plan.mesh.share;
	const way = isMesh || plan.isHttp ? 'ask' : wayOf(random());
	const [host, port] = isMesh ? [plan.mesh.address, 80] : [pick(plan.outside.hosts), pick(plan.outside.ports)];
	return new Promise(resolve => {
		const socket: Socket = connect({host, port});
		let text = '';
		let isOver = false;
		const end = (why?: string) => {
			if (isOver) return;
			isOver = true;
			socket.destroy();
			if (why !== undefined) tally.failed[why] = (tally.failed[why] ?? 0) + 1;
			resolve(why === undefined);
		};
		const broken = () => {
			tally.broken++;
			end();
		};
		socket.setTimeout(5000, () => end('timeout'));
		socket.on('error', (error: NodeJS.ErrnoException) => (way === 'reset by the server' ? broken() : end(error.code)));
		if (way === 'given up') return void setImmediate(broken);
		socket.on('connect', () => {
			if (way === 'reset by the client') {
				socket.resetAndDestroy();
				return broken();
			}
			if (isMesh || plan.isHttp) socket.write(`GET / HTTP/1.1\r\nhost: ${plan.mesh.host}\r\nconnection: close\r\n\r\n`);
			else socket.write(way === 'ask' ? 'hi\n' : 'reset\n');
		});
		const answered = () => {
			if (isMesh && !text.startsWith('HTTP/1.1 200')) return end(text.slice(0, 12));
			tally.answered++;
			if (isMesh && !text.includes(`"caller":"${plan.mesh.caller}"`)) tally.strange++;
			end();
		};
		const leave = () => {
			if (isOver) return;
			socket.resetAndDestroy();
			answered();
		};
		socket.on('data', chunk => {
			text += chunk.toString('latin1');
			// An Envoy that drains leaves the end of a connection to the client for some seconds. A client that ends many in
			// order runs out of ports.
			if (isMesh && isWhole(text)) setTimeout(leave, 50);
		});
		socket.on('end', () => {
			if (way === 'reset by the server') return broken();
			if (text === '') return end('closed');
			answered();
		});
	});
}

/** An HTTP answer with a length. */
function isWhole(text: string): boolean {
	const head = text.indexOf('\r\n\r\n');
	const length = /^content-length: (\d+)/im.exec(text)?.[1];
	return head > 0 && length !== undefined && text.length - head - 4 >= Number(length);
}

const startedMs = performance.now();
/** Those that would be more than a second late are not made up for. */
let due = startedMs;

async function worker(): Promise<never> {
	for (;;) {
		const now = performance.now();
		due = Math.max(due + 1000 / plan.perSecond, now - 1000);
		if (due > now) await new Promise(resolve => setTimeout(resolve, due - now));
		// Refused connections cost nothing: a loop of them would only keep the machine from coming back.
		if (!(await once())) await new Promise(resolve => setTimeout(resolve, 50));
	}
}

for (let n = 0; n < plan.atOnce; n++) void worker();
const say = () => console.log(JSON.stringify(tally));
setInterval(say, 1000);
process.stdin.resume().on('end', () => {
	say();
	process.exit(0);
});
