import {execFileSync} from 'node:child_process';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {isConnected, partsOf, startMesh, startTimeOf} from '../../support/mesh.ts';
import {missingForNetns, toolPath} from '../../support/netns.ts';
import {enterOwnNetwork} from '../../support/own-network.ts';
import {canMount, mountedAgent} from '../faults/private-mount.ts';

const names = ['vm', 'cluster'] as const;
const missing = missingForNetns(['ip', 'nft']) ?? enterOwnNetwork();
const nft = (...args: readonly string[]) => execFileSync(toolPath('nft')!, args);

const name = 'control-plane.example';
const flags = [
	...['--control-plane-keepalive', '1s', '--control-plane-keepalive-timeout', '1s'],
	...['--control-plane-connect-timeout', '1s', '--control-plane-backoff-max', '1s'],
	...['--server-name', 'istiod.istio-system.svc'],
];

test('control plane › a path that goes dead without a word is noticed by keepalive, traffic goes on, and another address of the name is followed', async t => {
	if (missing !== undefined || !canMount) {
		t.log(`skipped: ${missing ?? 'needs unshare'}`);
		return t.pass();
	}
	let hostsPath = '';
	/** In place: it is mounted over /etc/hosts for the agents alone. */
	const moveTo = (address: string) => writeFile(hostsPath, `127.0.0.1 localhost\n${address} ${name}\n`);
	const mesh = await startMesh(t, {
		flags,
		sandbox: {host: '0.0.0.0'},
		flagsOf: (_name, {sandbox}) => ['--control-plane', `${name}:${sandbox.port}`],
		wrapAgent: async (agentPath, directory) => {
			hostsPath = join(directory, 'etc-hosts');
			await moveTo('127.0.0.1');
			return mountedAgent(directory, agentPath, `mount --bind '${hostsPath}' /etc/hosts`);
		},
	});
	const {counts, port} = mesh.sandbox;
	const envoys = await Promise.all(names.map(async each => partsOf(await mesh.workload(each).status()).proxy.pid));
	const startTimes = envoys.map(startTimeOf);
	const loads = startLoads(t, mesh, 15);
	/** Both directions, of the connection that is there as well; nobody is told. */
	const silence = async () => {
		nft(`
			add table inet silence
			add chain inet silence in { type filter hook input priority 0; }
			add rule inet silence in ip daddr 127.0.0.1 tcp dport ${port} drop
			add rule inet silence in ip saddr 127.0.0.1 tcp sport ${port} drop
		`);
		for (const each of names) {
			const report = await mesh.workload(each).until('the stream given up', seen => !isConnected(seen));
			t.true(report.ready, `${each}: ${JSON.stringify(report.gates)}`);
			const away = await mesh.workload(each).until('away', seen => partsOf(seen).registration.state === 'away');
			t.is(partsOf(away).relay.upstream.lastError!.code, 'control_plane.unreachable');
		}
		await loads.untilMore(5);
	};
	const untilConnected = async (streams: number) => {
		for (const each of names)
			await mesh.workload(each).until('connected again', seen => seen.ready && isConnected(seen));
		t.is(counts.streamsOpened, streams);
	};
	const opened = counts.streamsOpened;

	await silence();
	nft('delete table inet silence');
	await untilConnected(opened + names.length);

	await silence();
	await moveTo('127.0.0.2');
	await untilConnected(opened + 2 * names.length);

	await loads.untilMore(5);
	assertNoneFailed(t, await loads.stop());
	for (const [i, each] of names.entries()) {
		const {pid, restarts} = partsOf(await mesh.workload(each).status()).proxy;
		t.deepEqual([pid, restarts, startTimeOf(pid)], [envoys[i]!, 0, startTimes[i]!]);
	}
});
