import {connect} from 'node:tls';
import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {type SecretMaterial, startSds} from '../../../src/proxy/xds.ts';
import {freePorts} from '../../../src/sandbox/local-workload.ts';
import {tinyAds, tlsListener} from './ads.ts';
import {makeMaterial} from './certificates.ts';
import {makeWorld, until} from './world.ts';

/** Common name of the certificate that a TLS server shows; resolves when a byte has gone there and back. */
function shake(port: number): Promise<string> {
	return new Promise((resolve, reject) => {
		const socket = connect({port, host: '127.0.0.1', rejectUnauthorized: false}, () => socket.write('.'));
		socket.on('data', () => {
			resolve(String(socket.getPeerCertificate().subject.CN));
			socket.destroy();
		});
		socket.on('error', reject);
		socket.setTimeout(10_000, () => socket.destroy(new Error('no answer')));
	});
}

test('sds › a listener waits for the first certificate, serves it, and takes a rotated one without a restart', async t => {
	const world = await makeWorld();
	t.teardown(() => world.end());
	let material: SecretMaterial | undefined;
	const listeners = new Set<() => void>();
	const publish = (next: SecretMaterial) => {
		material = next;
		for (const listener of listeners) listener();
	};
	const sds = startSds({
		source: {
			current: () => material,
			onChange(listener) {
				listeners.add(listener);
				return () => listeners.delete(listener);
			},
		},
		log: silentLogger,
	});
	t.teardown(() => sds.stop());
	const [port] = await freePorts(1);
	await world.startXds([tinyAds({tls: tlsListener('tls', port!)}), sds]);
	const proxy = await world.start();
	const reason = () => world.readiness.states()[0]!.reason;
	await until(reason, () => /INITIALIZING: waits for .*default/.test(reason()));
	publish(makeMaterial('first'));
	await until(reason, () => world.readiness.isReady);
	t.is(await shake(port!), 'first');
	const {pid} = proxy.status();
	publish(makeMaterial('second'));
	await until('the rotated certificate', async () => (await shake(port!)) === 'second');
	t.is(proxy.status().pid, pid);
	t.truthy(JSON.stringify(await proxy.admin.certs()).includes('valid_from'));
});
