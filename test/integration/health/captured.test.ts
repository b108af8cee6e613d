import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import type {ProbeCheck} from '../../../src/config/index.ts';
import {
	address,
	appUid,
	makeWorld,
	meshUid,
	primeTables,
	skippedWithout,
	toolsOf,
	type World,
} from '../../support/netns.ts';

const child = join(dirname(fileURLToPath(import.meta.url)), 'probe-child.ts');
const [open, closed, web] = [8080, 8081, 8082];
const families = ['ip', 'ip6'] as const;

const tcp = (port: number): ProbeCheck => ({kind: 'tcp', host: undefined, port});
const http = (port: number): ProbeCheck => ({
	kind: 'http',
	scheme: 'http',
	host: undefined,
	port,
	path: '/',
	headers: [],
});
const grpc = (port: number): ProbeCheck => ({kind: 'grpc', port, service: ''});

async function probe(
	{vm}: World,
	uid: number,
	host: string,
	checks: readonly ProbeCheck[],
	plain: readonly number[] = [],
): Promise<(string | null)[]> {
	const args = ['--reuid', String(uid), '--regid', String(uid), '--clear-groups'];
	const input = JSON.stringify({host, checks, plain});
	return JSON.parse(await vm.must('setpriv', [...args, process.execPath, child, input])) as (string | null)[];
}

const refused = 'connection refused: nobody listens there';

for (const [backend, interception] of [
	['nft', 'redirect'],
	['nft', 'tproxy'],
	['iptables-nft', 'redirect'],
	['iptables-legacy', 'redirect'],
] as const)
	test.serial(
		`probe › with capture on it reaches the application and never Envoy: ${backend}, ${interception}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-interception', interception]});
			if (backend === 'iptables-legacy') await primeTables(world);
			await world.startEnvoy({isTransparent: interception === 'tproxy'});
			const app = await world.vm.peer();
			for (const host of ['0.0.0.0', '::']) await app.listen(host, open);
			// One that Envoy stands in front of gets a line of PROXY first, which is no HTTP.
			await app.send('serveHttp', {port: web, name: 'app'});
			const applied = await world.capture(['apply']);
			t.is(applied.code, 0, applied.stderr);
			const checks = [tcp(open), tcp(closed), http(web), http(closed), grpc(closed)];
			const expected = [null, refused, null, refused, refused];
			for (const family of families) {
				const host = address.vm[family];
				// As the user whose connections Envoy is to take when they are its own calls to this machine; that is the trap.
				t.deepEqual(
					await probe(world, meshUid, host, checks, [closed]),
					[...expected, 'connected'],
					`${family}, Envoy's user`,
				);
				t.deepEqual(await probe(world, appUid, host, checks), expected, `${family}, another user`);
				t.deepEqual(await probe(world, 0, host, checks), expected, `${family}, root`);
			}
		},
	);

test.serial('probe › where somebody has taken ::6 off lo, it fails and says so rather than ask Envoy', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	await world.startEnvoy();
	const app = await world.vm.peer();
	await app.listen('::', open);
	t.is((await world.capture(['apply'])).code, 0);
	await world.vm.must('ip', ['addr', 'del', '::6/128', 'dev', 'lo']);
	const [outcome] = await probe(world, meshUid, address.vm.ip6, [tcp(closed)]);
	t.regex(outcome!, /^cannot be asked past Envoy: ::6 is missing on lo/);
	t.is((await world.capture(['remove'])).code, 0);
	t.deepEqual(await probe(world, meshUid, address.vm.ip6, [tcp(open), tcp(closed)]), [null, refused]);
});
