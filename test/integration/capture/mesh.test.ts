import {chown, mkdir, readdir} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {buildAgent} from '../../support/agent.ts';
import {idOf, startControlPlane} from '../../support/captured-mesh.ts';
import {ensureEnvoy} from '../../support/envoy.ts';
import {until} from '../../support/mesh.ts';
import {
	address,
	addVm,
	execute,
	makeWorld,
	meshUid,
	type Namespace,
	type Peer,
	secondWire,
	skippedWithout,
} from '../../support/netns.ts';

interface Echo {
	readonly app?: string;
	readonly caller?: string;
	readonly peer?: string;
	readonly error?: string;
}

const vips = {a: '240.240.0.11', b: '240.240.0.12'} as const;

test.serial(
	'mesh › two VMs talk over mutual TLS through the kernel’s rules, and their applications know nothing of it',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t, {ipv6: false});
		const second = await addVm(t, world);
		const control = await startControlPlane(world, {a: {vip: vips.a}, b: {vip: vips.b}});
		const [agentPath, envoyPath] = [await buildAgent(), await ensureEnvoy()];
		const join1 = async (group: 'a' | 'b', vm: Namespace, at: string): Promise<Vm> => {
			const directory = join(world.directory, group);
			const bundle = join(directory, 'bundle');
			await mkdir(bundle, {recursive: true});
			await control('writeBundle', bundle, {
				group,
				namespace: 'mesh',
				ingressAddress: address.far.ip,
				isDnsCaptured: false,
			});
			for (const path of [directory, bundle, ...(await readdir(bundle)).map(name => join(bundle, name))])
				await chown(path, meshUid, meshUid);
			const flags = [
				...['--config', join(world.directory, 'onramp.yaml'), '--bundle', bundle, '--name', group, '--address', at],
				...['--run-dir', join(directory, 'run'), '--state-dir', join(directory, 'state'), '--envoy', envoyPath],
				// Root's: beside the agent's own directory its user could exchange it.
				...['--capture-state-dir', join(world.directory, `${group}-capture`)],
				...[
					'--notify',
					'false',
					'--proxy-concurrency',
					'1',
					'--capture-users',
					String(meshUid),
					'--capture-groups',
					String(meshUid),
				],
			];
			// Root's share: the agent itself has no capability.
			const onramp = (...args: readonly string[]) =>
				execute('ip', ['netns', 'exec', vm.name, process.execPath, agentPath, ...args, ...flags]);
			let log = '';
			vm.spawn([process.execPath, agentPath, 'run', ...flags], {
				uid: meshUid,
				stdio: 'ignore',
				stderr: text => {
					log += text;
				},
			});
			await until(`agent ${group}\n${log}`, async () => (await onramp('status')).code === 0, 60_000).catch(
				(error: unknown) => {
					throw new Error(`agent ${group} is not ready: ${log}`, {cause: error});
				},
			);
			const app = await vm.peer();
			await app.send('serveHttp', {port: 8080, name: group});
			return {app, onramp};
		};
		const a = await join1('a', world.vm, address.vm.ip);
		const b = await join1('b', second, secondWire.vm);
		t.truthy(
			(await a.app.send<Echo>('get', {url: `http://${vips.b}/`, withinMs: 1500})).error,
			'without capture nobody has that address',
		);

		for (const {onramp} of [a, b]) {
			const {code, stderr} = await onramp('capture', 'apply', '--confirm', '30s', '--confirm-by', 'probes');
			t.is(code, 0, stderr);
		}
		for (const [from, to, caller, callee] of [
			[a, 'b', 'a', vips.b],
			[b, 'a', 'b', vips.a],
		] as const) {
			const echo = await until(`an answer of ${to}`, async () => {
				const seen = await from.app.send<Echo>('get', {url: `http://${callee}/`});
				return seen.app ? seen : undefined;
			});
			t.like(echo, {app: to, caller: idOf(caller), peer: '::ffff:127.0.0.6'}, `${caller} to ${to}`);
		}
		// Strict mTLS: who comes without a certificate is refused by Envoy, to which the rules lead it.
		const stranger = await world.far.peer(0);
		t.truthy(
			(await stranger.send<Echo>('get', {url: `http://${address.vm.ip}:8080/`})).error,
			'plaintext from outside',
		);

		for (const {onramp} of [a, b]) t.is((await onramp('capture', 'remove')).code, 0);
		t.like(
			await stranger.send<Echo>('get', {url: `http://${address.vm.ip}:8080/`}),
			{app: 'a', caller: ''},
			'after remove, as before',
		);
	},
);

interface Vm {
	readonly app: Peer;
	onramp(...args: readonly string[]): ReturnType<typeof execute>;
}
