// Asks one address over and over, each request on a new connection or all on one, and prints how long each took (µs):
//   node latency-client.ts http://NAME[:PORT]/ new|kept COUNT
import {lookup} from 'node:dns/promises';
import {Agent, get} from 'node:http';

const [url = '', kind = 'new', count = '100'] = process.argv.slice(2);
const {hostname, port} = new URL(url);
// Asked once: what a name costs is another row.
const {address} = await lookup(hostname);
const agent = new Agent({keepAlive: kind === 'kept', maxSockets: 1});

function ask(): Promise<number> {
	const startedMs = performance.now();
	return new Promise((resolve, reject) => {
		get({host: address, port: port || 80, headers: {host: hostname}, agent}, response => {
			response.resume();
			response.on('end', () => {
				if (response.statusCode === 200) resolve((performance.now() - startedMs) * 1000);
				else reject(new Error(`HTTP ${response.statusCode}`));
			});
		}).on('error', reject);
	});
}

// The first ones also warm up this process, and whatever is in between.
for (let i = 0; i < 20; i++) await ask();
const times: number[] = [];
for (let i = 0; i < Number(count); i++) times.push(await ask());
console.log(JSON.stringify(times));
agent.destroy();
