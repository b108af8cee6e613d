// Random settings on the real kernel. ONRAMP_TEST_SEEDS=200 tries more than the few that are always tried.
import test from 'ava';
import {backends, makeWorld, primeTables, skippedWithout, toolsOf} from '../../support/netns.ts';
import {seededRandom} from '../../support/seeded-random.ts';

const seeds = Number(process.env['ONRAMP_TEST_SEEDS'] ?? 3);
const first = Number(process.env['ONRAMP_TEST_FIRST_SEED'] ?? 1);

/** Rules of others, which must be as they were, before, between and after ours. */
const foreign = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -p tcp --dport 5555 -j REDIRECT --to-ports 6666
COMMIT
*filter
-A OUTPUT -p tcp --dport 25 -j REJECT
COMMIT
`;

/** Flags of some settings, each taken or left by chance. */
function randomFlags(random: () => number): string[] {
	const pick = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)]!;
	const some = (make: () => string, most: number): string =>
		Array.from({length: Math.floor(random() * (most + 1))}, make).join(',');
	const port = () => String(1 + Math.floor(random() * 65_535));
	const byte = () => Math.floor(random() * 256);
	const cidr = () =>
		random() < 0.5 ? `10.${byte()}.${byte()}.0/${pick([8, 16, 24, 30])}` : `2001:db8:${byte()}::/${pick([32, 48, 64])}`;
	const uid = () => String(20_000 + Math.floor(random() * 1000));
	const mark = 1 + Math.floor(random() * 60_000);
	const choices: Readonly<Record<string, () => string>> = {
		interception: () => pick(['redirect', 'tproxy']),
		'inbound-ports': () => (random() < 0.5 ? '*' : some(port, 40)),
		'inbound-exclude-ports': () => some(port, 20),
		'outbound-cidrs': () => (random() < 0.5 ? '*' : some(cidr, 5)),
		'outbound-exclude-cidrs': () => some(cidr, 5),
		'outbound-ports': () => some(port, 40),
		'outbound-exclude-ports': () => some(port, 20),
		'outbound-users': () => pick(['*', uid(), `${uid()},${uid()}`]),
		'outbound-exclude-users': () => some(uid, 3),
		'outbound-groups': () => pick(['*', uid(), `${uid()},${uid()}`]),
		'outbound-exclude-groups': () => some(uid, 3),
		'outbound-port': () => port(),
		'tunnel-port': () => port(),
		'on-agent-down': () => pick(['hold', 'bypass', 'block']),
		'exclude-interfaces': () => pick(['', 'tun*', 'eth1,wg*']),
		'outbound-interfaces': () => pick(['', 'tap0']),
		bridges: () => pick(['ignore', 'outbound']),
		dns: () => pick(['off', 'servers', 'all']),
		ipv6: () => pick(['capture', 'reject', 'ignore']),
		'drop-invalid': () => pick(['true', 'false']),
		'tproxy-mark': () => String(mark),
		'tproxy-route-table': () => String(100 + Math.floor(random() * 100)),
		'existing-connections': () => pick(['leave', 'end']),
	};
	return Object.entries(choices).flatMap(([name, value]) => (random() < 0.5 ? [`--capture-${name}`, value()] : []));
}

for (const backend of backends)
	test.serial(
		`property › apply twice is once; A, then B, then remove leaves the host as it was: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const tool = backend === 'iptables-legacy' ? 'iptables-legacy' : 'iptables-nft';
			for (const program of [`${tool}-restore`, `${tool.replace('ip', 'ip6')}-restore`])
				await world.vm.must(program, ['--noflush'], foreign);
			if (backend === 'iptables-legacy') await primeTables(world);
			const clean = await world.dump();
			const run = async (what: string, ...args: readonly string[]) => {
				const {code, stdout, stderr} = await world.capture(args);
				t.is(code, 0, `${what}: ${args.join(' ')}\n${stderr}`);
				return stdout;
			};
			for (let seed = first; seed < first + seeds; seed++) {
				const random = seededRandom(seed);
				const [a, b] = [randomFlags(random), randomFlags(random)];
				const what = `seed ${seed}, from ${a.join(' ')} to ${b.join(' ')}`;
				await run(what, 'apply', '--force', ...a);
				const once = await world.dump();
				t.regex(await run(what, 'apply', '--force', ...a), /unchanged/, what);
				t.is(await world.dump(), once, `${what}: apply twice is apply once`);
				await run(what, 'apply', '--force', ...b);
				t.regex(await run(what, 'apply', '--force', ...b), /unchanged/, what);
				const flags = seed % 2 === 0 ? a : [];
				await run(what, 'remove', ...(flags.includes('block') ? ['--all'] : []), ...flags);
				t.is(await world.dump(), clean, `${what}: nothing is left`);
			}
		},
	);

test.serial('property › from one way to load rules to another and back, only those of the last are there', async t => {
	if (skippedWithout(t, backends.flatMap(toolsOf))) return;
	const world = await makeWorld(t);
	await primeTables(world);
	const clean = await world.dump();
	const random = seededRandom(first);
	// Which family is first is decided by two programs at once.
	const dump = async () => (await world.dump()).split('\n').toSorted().join('\n');
	const seen = new Map<string, string>();
	for (const backend of [...backends, ...backends.toReversed()]) {
		const flags = ['--capture-backend', backend];
		const {code, stderr} = await world.capture(['apply', '--force', ...flags]);
		t.is(code, 0, `${backend}: ${stderr}`);
		const rules = await dump();
		t.is(seen.get(backend) ?? rules, rules, `${backend}: as at the first time`);
		seen.set(backend, rules);
		// Other settings in between, by the same way.
		t.is((await world.capture(['apply', '--force', ...flags, ...randomFlags(random)])).code, 0, backend);
		t.is((await world.capture(['apply', '--force', ...flags])).code, 0, backend);
		t.is(await dump(), rules, backend);
	}
	t.is(new Set(seen.values()).size, backends.length);
	t.is((await world.capture(['remove'])).code, 0);
	t.is(await world.dump(), clean);
});
