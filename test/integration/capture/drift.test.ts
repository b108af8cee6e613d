import {writeFile} from 'node:fs/promises';
import test from 'ava';
import {loadFrom} from '../../../src/cli/load.ts';
import {parsePlainFlags} from '../../../src/cli/plain-run.ts';
import {until} from '../../support/mesh.ts';
import {
	address,
	appUid,
	backends,
	makeWorld,
	meshUid,
	primeTables,
	skippedWithout,
	toolsOf,
	type World,
} from '../../support/netns.ts';

/** "Within seconds" of the promise. */
const soonMs = 10_000;

const docker = `:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 172.17.0.1:80
`;

/** Of all that iptables has, what a reload keeps of it. */
const reloaded = (nat: string) => `*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\n${nat}COMMIT\n*filter\nCOMMIT\n`;

const flushOutput = (backend: (typeof backends)[number]): readonly [string, ...string[]] =>
	backend === 'nft'
		? ['nft', 'flush', 'chain', 'ip', 'onramp', 'nat_output']
		: [backend, '-t', 'nat', '-F', 'ONRAMP_OUTPUT'];

/** `capture watch`, from its first look on. @returns what it says */
async function startWatch({vm, captureCommand}: World): Promise<() => string> {
	let said = '';
	vm.spawn([...captureCommand(['watch']), '--log-format', 'json', '--log-level', 'debug'], {
		stdio: 'ignore',
		stderr: text => {
			said += text;
		},
	});
	await until('the watch to have looked', () => said.includes('looking after them'));
	return () => said;
}

for (const backend of backends)
	test.serial(
		`drift › what firewalld, dockerd and others do to our rules is put right within seconds, or told: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			if (backend === 'iptables-legacy') await primeTables(world);
			const {vm, far} = world;
			const tool = backend === 'iptables-legacy' ? 'iptables-legacy' : 'iptables-nft';
			const nat = (...args: readonly string[]) => vm.must(tool, ['-t', 'nat', ...args]);
			const restore = async (text: string, text6: string) => {
				await vm.must(`${tool}-restore`, [], text);
				await vm.must(`${tool.replace('ip', 'ip6')}-restore`, [], text6);
			};
			await vm.must('ip', ['link', 'add', 'docker0', 'type', 'bridge']);
			await vm.must('ip', ['addr', 'add', '172.17.0.1/16', 'dev', 'docker0']);
			await vm.must('ip', ['link', 'set', 'docker0', 'addrgenmode', 'none', 'up']);
			await vm.must(`${tool}-restore`, ['--noflush'], `*nat\n${docker}COMMIT\n`);
			await world.startEnvoy();
			const [app, container, outside] = [await vm.peer(), await vm.peer(0), await far.peer(0)];
			for (const host of ['0.0.0.0', '::']) {
				await outside.listen(host, 80);
				await app.listen(host, 8080);
			}
			await container.listen('172.17.0.1', 80);
			t.is((await world.capture(['apply'])).code, 0);
			const said = await startWatch(world);

			const [flusher, ...flushing] = flushOutput(backend);
			// Envoy's own connections are not ours to protect.
			const owner = ['-m', 'owner', '--uid-owner', String(appUid)];
			const changes: Readonly<Record<string, () => Promise<unknown>>> = {
				'a reload of all that firewalld has, and of nothing else': async () => {
					if (backend === 'nft') await vm.must('nft', ['flush', 'ruleset']);
					await restore(reloaded(docker), reloaded(''));
				},
				'a restart of dockerd': async () => {
					const jump = ['PREROUTING', '-m', 'addrtype', '--dst-type', 'LOCAL', '-j', 'DOCKER'];
					await nat('-D', ...jump);
					await nat('-F', 'DOCKER');
					await nat('-X', 'DOCKER');
					await vm.must(`${tool}-restore`, ['--noflush'], `*nat\n${docker}COMMIT\n`);
				},
				'a chain of ours that is flushed': () => vm.must(flusher, flushing),
				'a redirect in front of ours, outbound': () =>
					nat('-I', 'OUTPUT', '-p', 'tcp', '--dport', '80', ...owner, '-j', 'REDIRECT', '--to-ports', '9'),
			};
			for (const [name, change] of Object.entries(changes)) {
				await change();
				const startedMs = performance.now();
				await until(`repair after ${name}: ${said()}`, async () => (await world.capture(['verify'])).code === 0);
				t.true(performance.now() - startedMs < soonMs, name);
				for (const family of ['ip', 'ip6'] as const) {
					t.like(await app.ask(address.far[family], 80), {via: 'envoy'}, `${name}, ${family} out`);
					t.like(await outside.ask(address.vm[family], 8080), {via: 'envoy'}, `${name}, ${family} in`);
				}
				t.like(await outside.ask(address.vm.ip, 8443), {via: 'direct', port: 80}, `${name}, the published port`);
			}

			// Behind a chain of containers, or at another priority, ours cannot be put before these.
			const inbound = ['PREROUTING', '-p', 'tcp', '--dport', '8080', '-j', 'REDIRECT', '--to-ports', '8081'];
			await nat('-I', ...inbound);
			const told = /could not be put right/;
			await until(`the redirect to be told: ${said()}`, () => told.test(said()));
			t.regex(said(), /in front of our rules: [^:]*table (?:ip )?nat.*PREROUTING/);
			const rules = await world.dump();
			const looks = () => said().split('looked at the rules').length;
			for (const change of ['add', 'delete']) {
				const before = looks();
				await vm.must('nft', [change, 'table', 'inet', 'somebody']);
				await until('the watch to look', () => looks() > before);
			}
			t.is(said().split('could not be put right').length, 2, 'tried once');
			t.is(await world.dump(), rules);
			await nat('-D', ...inbound);
			await until('the end of it', () => said().split('could not be put right')[1]!.includes('as planned again'));

			if (backend !== 'iptables-legacy') {
				await vm.must('iptables-legacy', ['-t', 'nat', '-A', ...inbound]);
				t.regex(
					(await world.capture(['verify'])).stdout,
					/in front of our rules: iptables-legacy, table nat: "-A PREROUTING .*8081"/,
				);
			}
			for (const hook of ['output', 'prerouting']) {
				await vm.must(
					'nft',
					['-f', '-'],
					`table inet other { chain first { type nat hook ${hook} priority -110; jump then; }\nchain then { tcp dport 80 redirect to :9; }\n}\n`,
				);
				t.regex(
					(await world.capture(['verify'])).stdout,
					/in front of our rules: table inet other, chain then: redirects/,
				);
				await vm.must('nft', ['delete', 'table', 'inet', 'other']);
			}
		},
	);

for (const backend of backends)
	test.serial(
		`drift › with report, rules follow resolv.conf within seconds, and what others change is told and left alone: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const flags = ['--capture-backend', backend, '--capture-dns', 'servers', '--capture-on-drift', 'report'];
			const world = await makeWorld(t, {flags});
			const {vm, far} = world;
			await world.startEnvoy();
			const [app, mesh, outside] = [await vm.peer(), await vm.peer(meshUid), await far.peer(0)];
			for (const family of ['ip', 'ip6'] as const) {
				await outside.serveNames(address.far[family], 53, 'far');
				await outside.serveNames(address.other[family], 53, 'other');
				await mesh.serveNames(family === 'ip' ? '127.0.0.1' : '::1', 15_053, 'agent');
			}
			const useServers = (servers: Readonly<Record<'ip' | 'ip6', string>>) =>
				writeFile(`/etc/netns/${vm.name}/resolv.conf`, `nameserver ${servers.ip}\nnameserver ${servers.ip6}\n`);
			const [, , , , ...words] = world.captureCommand(['apply']);
			const {config} = await loadFrom(parsePlainFlags(words)!);
			const known = async () => JSON.parse((await world.capture(['plan', '--format', 'json'])).stdout).digest as string;
			/** As an agent has it done. */
			const check = async (digest: string) => {
				const request = {kind: 'check', config: config.capture, isRepaired: false, known: digest};
				const [node, agent] = world.captureCommand(['step']);
				return JSON.parse(await vm.must(node!, [agent!, 'capture', 'step'], JSON.stringify(request)));
			};
			t.is((await world.capture(['apply'])).code, 0);
			const before = await known();
			t.deepEqual(await app.askName(address.other.ip), {name: 'other'});
			await useServers(address.other);
			t.like(await check('of somebody else'), {kind: 'drifted'}, 'rules that this agent does not know');
			t.like(await check(before), {kind: 'in', isChanged: true, rules: {repaired: []}});
			t.deepEqual(await app.askName(address.other.ip), {name: 'agent'});
			t.deepEqual(await app.askName(address.far.ip), {name: 'far'});

			const said = await startWatch(world);
			const startedMs = performance.now();
			await useServers(address.far);
			for (const family of ['ip', 'ip6'] as const) {
				const isCaught = async () => (await app.askName(address.far[family])).name === 'agent';
				await until(`questions to the new server to be caught: ${said()}`, isCaught);
				t.deepEqual(await app.askName(address.far[family], 'tcp'), {name: 'agent'});
			}
			t.true(performance.now() - startedMs < soonMs);
			await until(`the watch to say so: ${said()}`, () => said().includes('have followed'));
			t.is((await world.capture(['verify'])).code, 0);
			t.notRegex(said(), /not as planned/);

			const [tool, ...args] = flushOutput(backend);
			await vm.must(tool, args);
			await until(`the report: ${said()}`, () => said().includes('ip nat_output: 0 rules, wanted'));
			t.is((await world.capture(['verify'])).code, 1);
			t.like(await check(await known()), {kind: 'drifted'});
		},
	);
