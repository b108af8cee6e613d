import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readFileSync} from 'node:fs';
import {createInterface} from 'node:readline';
import test from 'ava';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {createCa, renderToken} from '../identity/test-ca.ts';
import {at, makeControlPlane} from './world.ts';

const token = renderToken({aud: ['istio-ca'], sub: 'system:serviceaccount:bar:vm', exp: 4_000_000_000});

/** A server of its own process, so that it can be stopped as a whole; says its port, and then each stream. */
const server = `
const server = require('node:http2').createSecureServer(JSON.parse(process.argv[1]));
server.on('stream', () => console.log('stream'));
server.listen(0, '127.0.0.1', () => console.log(server.address().port));`;

test('sockets › of a control plane that hangs after it was reached, nothing is left some seconds after the end', async t => {
	const ca = await createCa();
	const material = JSON.stringify(await ca.serve(['istiod.istio-system.svc']));
	const child = spawn(process.execPath, ['-e', server, material], {stdio: ['ignore', 'pipe', 'inherit']});
	t.teardown(() => child.kill('SIGKILL'));
	const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
	const port = Number((await lines.next()).value);

	const controlPlane = await makeControlPlane(t, {endpoints: [at(port)], rootPem: ca.pem, token});
	const stream = await controlPlane.openAdsStream('delta', new AbortController().signal);
	stream.call.on('error', () => {});
	stream.call.write(Buffer.alloc(0));
	t.is((await lines.next()).value, 'stream');
	t.is(countHeld(port), 1);
	child.kill('SIGSTOP');
	stream.close();
	const startedMs = systemClock.monotonicMs();
	while (countHeld(port) > 0 && systemClock.monotonicMs() - startedMs < 20_000) await systemClock.sleep(50);
	t.is(countHeld(port), 0);
	child.kill('SIGKILL');
	await once(child, 'close');
});

/** Connections to the port that a process holds; those that only the kernel has left have no inode. */
function countHeld(port: number): number {
	const remote = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`;
	return readFileSync('/proc/self/net/tcp', 'latin1')
		.split('\n')
		.map(line => line.trim().split(/\s+/))
		.filter(fields => fields[2] === remote && fields[9] !== '0').length;
}
