import test from 'ava';
import {mostDomains, type Run, routingDomains, startResolved} from '../../../src/dns/resolved.ts';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {encodeTable, meshTable, startWorld, until} from './world.ts';

/** What resolvectl keeps for one link. */
class FakeResolved {
	readonly settings = new Map<string, string>();
	readonly calls: string[] = [];
	failure: Error | undefined;

	readonly run: Run = async (_file, [verb = '', link = '', ...values]) => {
		this.calls.push([verb, link, ...values].join(' '));
		if (this.failure) throw this.failure;
		if (verb === 'revert') this.settings.clear();
		else if (values.length > 0) this.settings.set(verb, values.join(' '));
		else return `Link 7 (${link}): ${this.settings.get(verb) ?? ''}\n`;
		return '';
	};
}

function start(t: {teardown: (end: () => Promise<void>) => void}, fake: FakeResolved, sleep = systemClock.sleep) {
	let changes = 0;
	const resolved = startResolved({
		link: 'onramp-dns',
		server: '127.0.0.1:15053',
		clock: {...systemClock, sleep},
		log: silentLogger,
		run: fake.run,
		onChange: () => changes++,
	});
	t.teardown(() => resolved.stop());
	return {resolved, changes: () => changes};
}

test('resolved › gets a server and routing domains for our link, and no other names', async t => {
	const fake = new FakeResolved();
	const {resolved} = start(t, fake);
	resolved.setDomains(['svc.cluster.local', 'echo.demo.mesh']);
	await until(() => fake.settings.get('domain') === '~svc.cluster.local ~echo.demo.mesh', 'domains are given');
	t.is(fake.settings.get('dns'), '127.0.0.1:15053');
	t.is(fake.settings.get('default-route'), 'no');
	await until(() => resolved.problem === undefined, 'all is well');
	await resolved.stop();
	t.is(fake.calls.at(-1), 'revert onramp-dns');
	t.is(fake.settings.size, 0);
});

test('resolved › is told again when domains change, or somebody has taken them away', async t => {
	const fake = new FakeResolved();
	const {resolved} = start(t, fake, () => systemClock.sleep(20));
	resolved.setDomains(['a.mesh']);
	await until(() => fake.settings.get('domain') === '~a.mesh', 'the first');
	resolved.setDomains(['b.mesh']);
	await until(() => fake.settings.get('domain') === '~b.mesh', 'the second');
	fake.settings.clear();
	await until(() => fake.settings.get('domain') === '~b.mesh', 'given back');
	t.pass();
});

for (const [reason, message, hint] of [
	[
		'Failed to resolve interface "onramp-dns": No such device',
		/there is no link onramp-dns/,
		/ip link add onramp-dns type dummy/,
	],
	['Failed to set DNS configuration: Interactive authentication required.', /not permitted/, /polkit-1\/rules\.d/],
	[
		'Failed to set DNS configuration: Unit dbus-org.freedesktop.resolve1.service not found.',
		/does not run/,
		/enable --now/,
	],
	['something else', /something else/, /resolvectl status/],
] as const)
	test(`resolved › "${reason}" is told with what to do, and tried again`, async t => {
		const fake = new FakeResolved();
		fake.failure = new Error(reason);
		const {resolved, changes} = start(t, fake, () => systemClock.sleep(20));
		resolved.setDomains(['a.mesh']);
		await until(() => message.test(resolved.problem?.message ?? ''), 'the problem is told');
		t.regex(resolved.problem!.hint!, hint);
		const before = changes();
		fake.failure = undefined;
		await until(() => resolved.problem === undefined, 'it is tried again');
		t.is(changes(), before + 1);
	});

test('resolved › has room for so many domains; what is over is counted', t => {
	const fake = new FakeResolved();
	const {resolved} = start(t, fake);
	resolved.setDomains(Array.from({length: mostDomains + 5}, (_, index) => `h${index}.example`));
	t.is(resolved.domains.length, mostDomains);
	t.is(resolved.left, 5);
});

test('resolved › hosts in a domain of the mesh need none of their own', t => {
	t.deepEqual(routingDomains(['svc.cluster.local'], ['a.b.svc.cluster.local', 'echo.demo.mesh', '*.wild.mesh']), [
		'svc.cluster.local',
		'echo.demo.mesh',
		'wild.mesh',
	]);
});

test('resolved › the gate is closed until systemd-resolved asks us, and says why', async t => {
	const fake = new FakeResolved();
	fake.failure = new Error('No such device');
	const world = await startWorld(t, {mode: 'resolved'}, {resolvConf: '', run: fake.run});
	world.dns.setNameTable(meshTable);
	await until(() => /there is no link/.test(world.readiness.states()[0]!.reason), 'the gate says why');
	t.regex(world.readiness.states()[0]!.hint!, /ip link add/);
	fake.failure = undefined;
	await until(() => world.readiness.isReady, 'it opens');
	t.regex(fake.settings.get('domain')!, /^~svc\.cluster\.local ~echo\.demo\.mesh/);
	world.dns.setNameTable(encodeTable({'new.example': {addresses: ['240.240.0.9']}}));
	await until(() => fake.settings.get('domain') === '~svc.cluster.local ~new.example', 'new names are given');
	t.is(world.dns.status().routedDomains, 2);
});
