import test from 'ava';
import {address, makeWorld, primeTables, skippedWithout, toolsOf} from '../../support/netns.ts';

const some = ['--capture-outbound-exclude-ports', '81', '--capture-inbound-exclude-ports', '8081'];

/** What a killed iptables-restore leaves: the tables up to the one it was at. */
const changes = [
	{name: 'first apply', from: undefined, to: []},
	{name: 'fewer ports', from: [], to: some},
	{name: 'more ports', from: some, to: []},
] as const;

for (const backend of ['iptables-nft', 'iptables-legacy'] as const)
	test.serial(
		`kill -9 › of iptables between its tables: SSH is open, nothing leaves that neither settings let, nothing is cut: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			if (backend === 'iptables-legacy') await primeTables(world);
			const {vm, far} = world;
			const clean = await world.dump();
			await world.startEnvoy();
			const [app, outside, ssh] = [await vm.peer(), await far.peer(0), await vm.peer(0)];
			for (const host of ['0.0.0.0', '::']) {
				for (const port of [80, 81]) await outside.listen(host, port);
				for (const port of [8080, 8081]) await app.listen(host, port);
				await ssh.listen(host, 22);
			}
			const must = async (...args: readonly string[]) => {
				const {code, stdout, stderr} = await world.capture(args);
				t.is(code, 0, stderr);
				return stdout;
			};
			for (const {name, from, to} of changes) {
				if (from) await must('apply', ...from);
				else await must('remove');
				const shown = await must('plan', '--format', 'iptables', ...to);
				const parts = shown.split(/^# (\S+) --noflush\n/m).slice(1);
				const scripts = [0, 2].map(at => ({
					program: parts[at]!,
					tables: parts[at + 1]!.split(/(?<=^COMMIT\n)/m).filter(text => text.includes('COMMIT')),
				}));
				const last = scripts[0]!.tables.length - 1;
				t.true(last >= 1);
				// Is there before any table.
				if (!from) await vm.must('ip', ['-6', 'addr', 'add', '::6/128', 'dev', 'lo', 'metric', '60015']);
				for (let k = 0; k < last; k++) {
					for (const {program, tables} of scripts) await vm.must(program, ['--noflush'], tables[k]!);
					if (from) {
						// What has escaped the redirect is still stopped, unless one of the two lets it go.
						const past = ['ONRAMP_OUTPUT', '-p', 'tcp', '-j', 'RETURN'];
						await vm.must(backend, ['-t', 'nat', '-I', ...past]);
						t.like(await app.ask(address.far.ip, 80), {error: 'ECONNREFUSED'}, `${name}, table ${k}: escaped`);
						t.like(await app.ask(address.far.ip, 81), {via: 'direct'}, `${name}, table ${k}: not escaped`);
						await vm.must(backend, ['-t', 'nat', '-D', ...past]);
					}
					for (const family of ['ip', 'ip6'] as const) {
						const where = `${name}, ${family}, after ${scripts[0]!.tables.slice(0, k + 1).map(text => text.slice(1, text.indexOf('\n')))}`;
						const ask = async (...[who, host, port]: readonly [typeof app, string, number]) => {
							const {via, error} = await who.ask(host, port, {withinMs: 3000});
							return via ?? error ?? '';
						};
						t.is(await ask(outside, address.vm[family], 22), 'direct', `SSH: ${where}`);
						const both = from ? ['envoy'] : ['envoy', 'direct'];
						for (const [who, host, port, allowed] of [
							[app, address.far[family], 80, both],
							[app, address.far[family], 81, ['envoy', 'direct']],
							[outside, address.vm[family], 8080, both],
							[outside, address.vm[family], 8081, ['envoy', 'direct']],
						] as const) {
							const seen = await ask(who, host, port);
							t.true((allowed as readonly string[]).includes(seen), `${seen} to port ${port}: ${where}`);
						}
					}
				}
				t.is((await world.capture(['verify', ...to])).code, 1, `${name}: noticed`);
				t.regex(await must('apply', ...to), /applied/);
				await must('verify', ...to);
			}
			await must('remove');
			t.is(await world.dump(), clean);
		},
	);
