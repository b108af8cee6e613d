/**
 * Writes generations without pause until it is killed. The pairs to write come as JSON on standard input; standard
 * output says `N INDEX` once generation N, holding pair INDEX, is on disk.
 */
import {writeSync} from 'node:fs';
import {text} from 'node:stream/consumers';
import {openStore} from '../../../src/identity/store.ts';
import {acquireLock} from '../../../src/lifecycle/lock.ts';
import {Secret} from '../../../src/log.ts';

const [dir] = process.argv.slice(2);
const pairs = JSON.parse(await text(process.stdin)) as {keyPem: string; chainPem: string; rootsPem: string}[];
await acquireLock(`${dir}/lock`);
const store = openStore(dir!);
await store.removeLeftovers();
await store.load();
for (let i = 0; ; i++) {
	const index = i % pairs.length;
	const {keyPem, ...certificates} = pairs[index]!;
	const number = await store.save({
		...certificates,
		keyPem: new Secret(keyPem),
		receivedAt: new Date(),
		requestedSpiffeId: 'spiffe://cluster.local/ns/bar/sa/vm',
		isTokenless: false,
	});
	writeSync(1, `${number} ${index}\n`);
}
