import {chmod, copyFile, mkdir} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {until} from '../../support/mesh.ts';
import {
	addGuest,
	address,
	appUid,
	backends,
	guestWire,
	makeWorld,
	meshUid,
	primeTables,
	skippedWithout,
	toolPath,
	toolsOf,
	type World,
} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;

for (const backend of backends)
	test.serial(
		`capture › questions for names go to the agent, over UDP and TCP, and those of the agent do not: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-dns', 'servers']});
			const {vm, far} = world;
			await world.startEnvoy();
			const [app, mesh, outside] = [await vm.peer(), await vm.peer(meshUid), await far.peer(0)];
			for (const family of families) {
				await outside.serveNames(address.far[family], 53, 'far');
				await outside.serveNames(address.other[family], 53, 'other');
				await mesh.serveNames(family === 'ip' ? '127.0.0.1' : '::1', 15_053, 'agent');
			}
			const applied = await world.capture(['apply']);
			t.is(applied.code, 0, applied.stderr);
			for (const family of families)
				for (const protocol of ['udp', 'tcp'] as const) {
					t.deepEqual(await app.askName(address.far[family], protocol), {name: 'agent'}, `${family} ${protocol}`);
					t.deepEqual(
						await mesh.askName(address.far[family], protocol),
						{name: 'far'},
						`${family} ${protocol} of the agent`,
					);
				}
			t.deepEqual(await app.askName(address.other.ip, 'udp'), {name: 'other'}, 'not a server of resolv.conf');
			t.is((await world.capture(['apply', '--capture-dns', 'all'])).code, 0);
			t.deepEqual(await app.askName(address.other.ip, 'udp'), {name: 'agent'});
			t.is((await world.capture(['remove'])).code, 0);
			t.deepEqual(await app.askName(address.far.ip, 'udp'), {name: 'far'});
		},
	);

for (const backend of backends)
	test.serial(
		`capture › the agent may ask from a port that an application has just asked the same server from: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-dns', 'servers']});
			const {vm, far} = world;
			await world.startEnvoy();
			const [app, mesh, outside] = [await vm.peer(), await vm.peer(meshUid), await far.peer(0)];
			for (const family of families) {
				await outside.serveNames(address.far[family], 53, 'far');
				await mesh.serveNames(family === 'ip' ? '127.0.0.1' : '::1', 15_053, 'agent');
			}
			t.is((await world.capture(['apply'])).code, 0);
			for (const family of families) {
				const server = address.far[family];
				// Connection tracking remembers each question for half a minute.
				t.deepEqual(await app.askName(server, 'udp', 40_001), {name: 'agent'}, family);
				t.deepEqual(
					await mesh.askName(server, 'udp', 40_001),
					{name: 'far'},
					`${family}: the agent is not led to itself`,
				);
				t.deepEqual(await mesh.askName(server, 'udp', 40_002), {name: 'far'}, family);
				t.deepEqual(
					await app.askName(server, 'udp', 40_002),
					{name: 'agent'},
					`${family}: nor the application past it`,
				);
				t.deepEqual(await app.askName(server, 'udp', 40_001), {name: 'agent'}, `${family}: again`);
			}
		},
	);

for (const backend of backends)
	test.serial(
		`capture › connections from before the rules go on as they were, on a host that tracked nothing: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const {vm, far} = world;
			await world.startEnvoy();
			const [app, outside, ssh] = [await vm.peer(), await far.peer(0), await vm.peer(0)];
			await outside.listen('0.0.0.0', 80);
			await app.listen('0.0.0.0', 8080);
			await ssh.listen('0.0.0.0', 22);
			await app.ask(address.far.ip, 80, {hold: 1});
			await outside.ask(address.vm.ip, 22, {hold: 1});
			await outside.ask(address.vm.ip, 8080, {hold: 2});
			const {code, stdout} = await world.capture(['apply']);
			t.is(code, 0);
			const older = (text: string) => text.split('\n').filter(line => line.includes('older than the rules'));
			const named = [
				`older than the rules, past Envoy until it ends: inbound, port 8080 from ${address.far.ip}, uid ${appUid}`,
				`older than the rules, past Envoy until it ends: outbound, to ${address.far.ip}:80, uid ${appUid}`,
			];
			t.deepEqual(
				older(stdout).toSorted(),
				named.map(line => `note: ${line}`),
			);
			// The side that speaks first after the rules differs: a shell that prints, a client that asks.
			t.like(await outside.askAgain(1), {via: 'direct'}, 'the SSH session of who applied the rules');
			t.like(await app.askAgain(1), {via: 'direct'}, 'outbound');
			t.like(await outside.askAgain(2), {via: 'direct'}, 'inbound');
			t.like(await app.ask(address.far.ip, 80, {hold: 3}), {via: 'envoy'}, 'a new one is captured');
			t.like(await outside.ask(address.vm.ip, 8080, {hold: 4}), {via: 'envoy'}, 'also a new one from outside');
			t.deepEqual(older((await world.capture(['status'])).stdout).toSorted(), named, 'captured ones are not named');
		},
	);

for (const backend of backends)
	test.serial(`capture › only what the lists say is captured: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
		const {vm, far} = world;
		await world.startEnvoy();
		const [app, other, outside] = [await vm.peer(), await vm.peer(appUid + 1), await far.peer(0)];
		for (const host of ['0.0.0.0', '::']) {
			for (const port of [80, 81]) await outside.listen(host, port);
			for (const port of [8080, 8081]) await app.listen(host, port);
		}
		const check = async (
			what: string,
			flags: readonly string[],
			expected: Readonly<Record<string, 'envoy' | 'direct'>>,
		) => {
			const {code, stderr} = await world.capture(['apply', ...flags]);
			t.is(code, 0, stderr);
			for (const family of families) {
				const seen = {
					'far:80': (await app.ask(address.far[family], 80)).via,
					'far:81': (await app.ask(address.far[family], 81)).via,
					'other:80': (await app.ask(address.other[family], 80)).via,
					'user:80': (await other.ask(address.far[family], 80)).via,
					'in:8080': (await outside.ask(address.vm[family], 8080)).via,
					'in:8081': (await outside.ask(address.vm[family], 8081)).via,
				};
				t.like(seen, expected, `${what}, ${family}`);
			}
		};
		const nothing = {'far:80': 'direct', 'far:81': 'direct', 'other:80': 'direct'} as const;
		const {other: aside} = address;
		await check('networks', ['--capture-outbound-cidrs', `${aside.ip}/24,${aside.ip6}/64`], {
			...nothing,
			'other:80': 'envoy',
		});
		await check('excluded networks', ['--capture-outbound-exclude-cidrs', `${aside.ip}/24,${aside.ip6}/64`], {
			'far:80': 'envoy',
			'other:80': 'direct',
		});
		await check('ports', ['--capture-outbound-cidrs', '', '--capture-outbound-ports', '81'], {
			...nothing,
			'far:81': 'envoy',
		});
		await check('excluded ports', ['--capture-outbound-exclude-ports', '81'], {'far:80': 'envoy', 'far:81': 'direct'});
		await check(
			'excluded users',
			['--capture-outbound-exclude-users', String(appUid + 1), '--capture-users', `${meshUid}`],
			{'far:80': 'envoy', 'user:80': 'direct'},
		);
		await check('excluded groups', ['--capture-outbound-exclude-groups', String(appUid + 1)], {
			'far:80': 'envoy',
			'user:80': 'direct',
		});
		await check('users', ['--capture-outbound-users', String(appUid + 1)], {...nothing, 'user:80': 'envoy'});
		await check('groups', ['--capture-outbound-groups', String(appUid)], {'far:80': 'envoy', 'user:80': 'direct'});
		await check('inbound ports', ['--capture-inbound-ports', '8081'], {'in:8080': 'direct', 'in:8081': 'envoy'});
		await check('excluded inbound ports', ['--capture-inbound-exclude-ports', '8081'], {
			'in:8080': 'envoy',
			'in:8081': 'direct',
		});
		await check('interfaces', ['--capture-exclude-interfaces', 'eth0'], {...nothing, 'in:8080': 'direct'});
	});

for (const backend of backends)
	test.serial(`capture › with IPv6 off the rules are those of IPv4 alone: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {ipv6: false, flags: ['--capture-backend', backend]});
		if (backend === 'iptables-legacy') await primeTables(world);
		const {vm, far} = world;
		const before = await world.dump();
		await world.startEnvoy();
		const [app, outside] = [await vm.peer(), await far.peer(0)];
		await outside.listen('0.0.0.0', 80);
		const {code, stderr} = await world.capture(['apply']);
		t.is(code, 0, stderr);
		t.like(await app.ask(address.far.ip, 80), {via: 'envoy'});
		t.notRegex(await world.dump(), /ip6 onramp|ip6tables-\S+-save.*\n[^#]*ONRAMP_/);
		t.is((await world.capture(['verify'])).code, 0);
		t.is((await world.capture(['remove'])).code, 0);
		t.is(await world.dump(), before);
	});

test.serial('capture › a host that has only iptables-legacy gets its rules, and loses them again', async t => {
	if (skippedWithout(t, toolsOf('iptables-legacy'))) return;
	const world = await makeWorld(t);
	await primeTables(world);
	const {vm, far} = world;
	const before = await world.dump();
	await world.startEnvoy();
	const [app, outside] = [await vm.peer(), await far.peer(0)];
	for (const host of ['0.0.0.0', '::']) await outside.listen(host, 80);
	// Each command in a namespace has mounts of its own, so nobody else misses the tools.
	const hide = ['nft', 'iptables-nft'].flatMap(name => toolPath(name) ?? []);
	const capture = (args: readonly string[]) =>
		vm.run('sh', [
			...['-c', `${hide.map(path => `mount --bind /dev/null ${path} && `).join('')}exec "$@"`, 'sh'],
			...world.captureCommand(args),
		]);
	const {code, stdout, stderr} = await capture(['apply']);
	t.is(code, 0, stderr);
	t.regex(stdout, /rules with iptables-legacy/);
	for (const family of families) t.like(await app.ask(address.far[family], 80), {via: 'envoy'}, family);
	t.is((await capture(['verify'])).code, 0);
	t.regex((await capture(['remove'])).stdout, /removed \(iptables-legacy\)/);
	t.is(await world.dump(), before);
});

/** A place with these tools of the system's only; what is in /usr/bin stays. Nobody else misses the others. */
async function only(world: World, tools: Readonly<Record<string, string>>) {
	const directory = join(world.directory, 'sbin');
	await mkdir(directory);
	for (const [name, from] of Object.entries(tools)) {
		await copyFile(from, join(directory, name));
		await chmod(join(directory, name), 0o755);
	}
	return (args: readonly string[]) =>
		world.vm.run('sh', ['-c', `mount --bind ${directory} /usr/sbin && exec "$@"`, 'sh', ...world.captureCommand(args)]);
}

for (const kind of ['nft', 'legacy'] as const)
	test.serial(`capture › iptables by its plain name is asked what it is: ${kind}`, async t => {
		if (skippedWithout(t, toolsOf(`iptables-${kind}`))) return;
		const world = await makeWorld(t);
		await primeTables(world);
		const names = ['iptables', 'ip6tables'].flatMap(name => [name, `${name}-save`, `${name}-restore`]);
		const suffixed = (name: string) => name.replace('tables', `tables-${kind}`);
		const capture = await only(
			world,
			Object.fromEntries([...names.map(name => [name, toolPath(suffixed(name))!]), ['ip', toolPath('ip')!]]),
		);
		const {code, stdout, stderr} = await capture(['apply', '--force']);
		t.is(code, 0, stderr);
		t.regex(stdout, new RegExp(`rules with iptables-${kind}`));
		t.regex(await world.dump(), /ONRAMP_OUTPUT/);
		t.regex((await capture(['remove'])).stdout, new RegExp(`removed \\(iptables-${kind}\\)`));
		t.notRegex(await world.dump(), /ONRAMP/);
	});

test.serial(
	'capture › a machine that has neither nft nor iptables is told so, nothing having been changed',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t);
		const before = await world.dump();
		const capture = await only(world, {ip: toolPath('ip')!});
		const {code, stderr} = await capture(['apply', '--force']);
		t.is(code, 78);
		t.regex(stderr, /this machine has neither nft nor iptables\n +→ install the package nftables/);
		t.is(await world.dump(), before);
	},
);

for (const backend of backends)
	test.serial(`capture › ICMP and DHCP pass as if there were no rules: ${backend}`, async t => {
		if (skippedWithout(t, [...toolsOf(backend), 'ping'])) return;
		const world = await makeWorld(t, {
			flags: ['--capture-backend', backend, '--capture-dns', 'all', '--capture-drop-invalid', 'true'],
		});
		const {vm, far} = world;
		// Datagrams as they are on the other side of the wire, both ways.
		const watch = (name: string, port: number) =>
			`table inet watch { chain input { type filter hook input priority -300; iifname "${name}" udp dport ${port} counter; }\n}\n`;
		await far.must('nft', ['-f', '-'], watch('vm0', 67));
		await vm.must('nft', ['-f', '-'], watch('eth0', 68));
		const count = async (where: typeof far) =>
			Number(/packets (\d+)/.exec(await where.must('nft', ['list', 'table', 'inet', 'watch']))![1]);
		t.is((await world.capture(['apply', '--force'])).code, 0);
		for (const family of families) {
			t.is((await vm.run('ping', ['-c', '1', '-W', '10', address.far[family]])).code, 0, `${family} out`);
			t.is((await far.run('ping', ['-c', '1', '-W', '10', address.vm[family]])).code, 0, `${family} in`);
		}
		await vm.must('bash', ['-c', `echo > /dev/udp/${address.far.ip}/67`]);
		await far.must('bash', ['-c', `echo > /dev/udp/${address.vm.ip}/68`]);
		await until('the datagrams to arrive', async () => (await count(far)) === 1 && (await count(vm)) === 1);
		t.pass();
	});

for (const backend of backends)
	test.serial(
		`capture › guests behind a bridge are left alone, or go through Envoy as declared: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const {vm, far} = world;
			const guest = await addGuest(t, world);
			await world.startEnvoy();
			const [inside, outside, app] = [await guest.peer(), await far.peer(0), await vm.peer()];
			await outside.listen('0.0.0.0', 80);
			await app.listen('0.0.0.0', 8080);
			t.is((await world.capture(['apply'])).code, 0);
			t.like(await inside.ask(address.far.ip, 80), {via: 'direct'}, 'left alone');
			t.like(await inside.ask(guestWire.vm, 8080), {via: 'direct'}, 'a guest reaches its host');
			t.is((await world.capture(['apply', '--capture-bridges', 'outbound'])).code, 0);
			t.like(await inside.ask(address.far.ip, 80), {via: 'envoy'}, 'as if this machine had sent it');
			t.like(await inside.ask(guestWire.vm, 8080), {via: 'direct'}, 'a guest reaches its host');
			t.is((await world.capture(['remove'])).code, 0);
			t.like(await inside.ask(address.far.ip, 80), {via: 'direct'});
		},
	);
