import {execFileSync} from 'node:child_process';
import test from 'ava';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {isConnected, partsOf, startMesh, startTimeOf} from '../../support/mesh.ts';
import {missingForNetns, toolPath} from '../../support/netns.ts';
import {enterOwnNetwork} from '../../support/own-network.ts';

const names = ['vm', 'cluster'] as const;
const missing = missingForNetns(['ip', 'nft']) ?? enterOwnNetwork();
const nft = (...args: readonly string[]) => execFileSync(toolPath('nft')!, args);

test('control plane › a path that goes dead without a word is noticed by keepalive, and traffic goes on', async t => {
	if (missing !== undefined) {
		t.log(`skipped: ${missing}`);
		return t.pass();
	}
	const mesh = await startMesh(t, {
		flags: [
			...['--control-plane-keepalive', '1s', '--control-plane-keepalive-timeout', '1s'],
			...['--control-plane-connect-timeout', '1s', '--control-plane-backoff-max', '1s'],
		],
	});
	const envoys = await Promise.all(names.map(async name => partsOf(await mesh.workload(name).status()).proxy.pid));
	const startTimes = envoys.map(startTimeOf);
	const loads = startLoads(t, mesh, 15);
	const {streamsOpened} = mesh.sandbox.counts;

	// Both directions of the connection that is there; nobody is told.
	nft(`
		add table inet silence
		add chain inet silence in { type filter hook input priority 0; }
		add rule inet silence in tcp dport ${mesh.sandbox.port} drop
		add rule inet silence in tcp sport ${mesh.sandbox.port} drop
	`);
	for (const name of names) {
		const report = await mesh.workload(name).until('the stream given up', seen => !isConnected(seen));
		t.true(report.ready, `${name}: ${JSON.stringify(report.gates)}`);
		const away = await mesh.workload(name).until('away', seen => partsOf(seen).registration.state === 'away');
		t.is(partsOf(away).relay.upstream.lastError!.code, 'control_plane.unreachable');
	}
	await loads.untilMore(5);

	nft('delete table inet silence');
	for (const name of names) await mesh.workload(name).until('connected again', seen => seen.ready && isConnected(seen));
	t.is(mesh.sandbox.counts.streamsOpened, streamsOpened + names.length);
	await loads.untilMore(5);
	assertNoneFailed(t, await loads.stop());
	for (const [i, name] of names.entries()) {
		const {pid, restarts} = partsOf(await mesh.workload(name).status()).proxy;
		t.deepEqual([pid, restarts, startTimeOf(pid)], [envoys[i]!, 0, startTimes[i]!]);
	}
});
