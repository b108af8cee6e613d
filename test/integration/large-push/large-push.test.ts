import {type ChildProcess, fork} from 'node:child_process';
import {once} from 'node:events';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import {typeUrl} from '../../../src/proto/types.ts';
import {partsOf, startMesh} from '../../support/mesh.ts';
import type {Answers} from './asker.ts';

const services = 5000;
/** Generous: control plane, agent, Envoy and who asks share the machine. Seen on a busy one with two cores: 250 to 550 ms. */
const mostMs = 1500;

/** The next message, or why there is none. */
async function hear<T>(child: ChildProcess): Promise<T> {
	const ended = once(child, 'exit').then(() => Promise.reject(new Error('who asks has ended: an answer failed')));
	const [message] = (await Promise.race([once(child, 'message'), ended])) as [T];
	return message;
}

test('large push › of 5,000 services reaches Envoy whole, while status and SDS go on answering', async t => {
	const mesh = await startMesh(t, {workloads: {vm: 'vm'}});
	const vm = mesh.workload('vm');
	const asker = fork(fileURLToPath(new URL('asker.ts', import.meta.url)), [
		String(vm.ports.status),
		`${vm.runDir}/xds.sock`,
	]);
	t.teardown(() => asker.kill('SIGKILL'));
	await hear(asker);
	const {pushes, acks} = mesh.sandbox;
	const isTaken = new Promise<void>(resolve => {
		let nonce = '';
		t.teardown(
			pushes.on(push => {
				if (push.typeUrl === typeUrl.endpoint && push.resources >= services) ({nonce} = push);
			}),
		);
		t.teardown(acks.on(ack => ack.nonce === nonce && resolve()));
	});
	mesh.sandbox.addServices(services);
	await isTaken;
	asker.send('tell');
	for (const [name, {count, longestGapMs}] of Object.entries(await hear<Record<string, Answers>>(asker))) {
		t.log(`${name}: ${count} answers, longest gap ${longestGapMs} ms`);
		t.true(count > 0 && longestGapMs < mostMs, `longest gap of ${name}: ${longestGapMs} ms`);
	}
	const {relay} = partsOf(await vm.status());
	t.deepEqual(relay.rejections, []);
	t.true(relay.resources['EDS']! >= services);
	await vm.untilReady();
});
