// The life of two machines with the packages, told in order: each test begins where the one before has ended.
import {readdirSync} from 'node:fs';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {idOf} from '../support/captured-mesh.ts';
import {until} from '../support/mesh.ts';
import {address, type Peer} from '../support/netns.ts';
import {assertNoAbstractSocket, assertNoSecretShows, assertPublicIsHarmless, assertRefused} from './hostile.ts';
import {missingForMachines} from './machine.ts';
import {shareScope} from './scope.ts';
import {
	type BootedWorld,
	buildPackages,
	differenceOf,
	install,
	joinMesh,
	lookAround,
	makeBootedWorld,
	type Packages,
	underLoad,
	underLoads,
	untilActive,
	untilAnswered,
	type Vm,
	vips,
} from './world.ts';

const {scope, step: shared} = shareScope(test);
let [world, a, b, packages] = [undefined, undefined, undefined, undefined] as unknown as [
	BootedWorld,
	Vm,
	Vm,
	Packages,
];
let before: readonly string[] = [];
let reachBefore: unknown;
/** In front of the mesh, and not of it. */
let outside: Peer;

function step(title: string, run: (t: ExecutionContext) => Promise<void>): void {
	shared(`package › ${title}`, async t => {
		const reason = await missingForMachines();
		if (reason === undefined) return run(t);
		t.log(`skipped: ${reason}`);
		t.pass();
	});
}

const envoyPid = ({machine}: Vm, name = 'a'): Promise<string> =>
	machine.show(`onramp-envoy@${name}.service`, 'MainPID');
const agentPid = ({machine}: Vm): Promise<string> => machine.show('onramp-agent.service', 'MainPID');
const rulesOf = ({machine}: Vm): Promise<string> => machine.must('nft -s list ruleset');

async function assertBothWays(t: ExecutionContext): Promise<void> {
	t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
}

/** What applications get past the mesh: of a machine that is not in it, as one to which nobody but the mesh may speak, and by a name of the mesh. */
async function reach(): Promise<unknown> {
	const get = (from: Peer, url: string) => from.send('get', {url, withinMs: 3000});
	return {
		out: await get(a.app, `http://${address.far.ip}:${outsidePort}/`),
		in: await get(outside, `http://${address.vm.ip}:8080/`),
		mesh: await get(a.app, `http://${vips.b}/`),
	};
}

const outsidePort = 8090;

async function untilReady({machine}: Vm): Promise<void> {
	await machine.must('onramp status --wait 60s');
}

step('a fresh installation is quiet: nothing runs, nothing has failed, and one line says what to do', async t => {
	packages = await buildPackages();
	world = await makeBootedWorld(scope);
	[a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
	before = await lookAround(a);
	outside = await world.far.peer(0);
	await outside.send('serveHttp', {port: outsidePort, name: 'outside'});
	reachBefore = await reach();
	t.like(reachBefore, {out: {app: 'outside', caller: ''}, in: {app: 'a', caller: ''}});
	t.log(reachBefore);
	for (const vm of [a, b]) {
		const said = await install(vm, packages);
		t.regex(said, /^onramp is installed and does nothing yet: onramp join BUNDLE$/m);
		t.is(await vm.machine.show('onramp.service', 'ActiveState'), 'inactive');
		t.is((await vm.machine.must('systemctl --failed --plain --no-legend')).trim(), '');
	}
});

step('joined, a machine is called and calls over mutual TLS, and its application knows nothing of it', async t => {
	for (const vm of [a, b]) {
		const startedMs = performance.now();
		t.regex(await joinMesh(vm), /onramp.service: enabled[\s\S]*ready: spiffe:/);
		t.is(await vm.machine.show('onramp-ready.target', 'ActiveState'), 'active', 'join returns when the rules are in');
		t.log(`${vm.machine.name}: in the mesh ${Math.round(performance.now() - startedMs)} ms after "onramp join"`);
	}
	await assertBothWays(t);
	t.regex(await a.machine.must('onramp join /root/bundle'), /nothing to do/, 'again changes nothing');
});

step(
	'a token in the credential store is enough to join with, plain or encrypted, and no file of the bundle is',
	async t => {
		const {machine} = a;
		const since = async () => machine.must('systemctl show onramp-agent -p InvocationID --value');
		const dropIn = '/run/systemd/system/onramp-agent.service.d';
		const token = '/etc/onramp/bundle/istio-token';
		const store =
			'install -d -m 0700 /etc/credstore && install -m 0600 -o root -g root /root/token /etc/credstore/istio-token';
		const systemd = Number(/^systemd (\d+)/.exec(await machine.must('systemctl --version'))?.[1]);
		const withPath = `mkdir ${dropIn} && printf '[Service]\\nLoadCredential=istio-token:/etc/credstore/istio-token\\n' > ${dropIn}/token.conf`;
		// An older one does not look there by itself, and knows no encrypted ones.
		const ways =
			systemd < 252
				? [`${store} && ${withPath}`]
				: [
						store,
						`rm -r /etc/credstore; systemd-creds encrypt --with-key=host --name=istio-token /root/token /root/token.cred 2>/dev/null && mkdir ${dropIn} && printf '[Service]\\nLoadCredentialEncrypted=istio-token:/root/token.cred\\n' > ${dropIn}/token.conf`,
					];
		await machine.must(`mv ${token} /root/token`);
		for (const way of ways) {
			const before = await since();
			await machine.must(way);
			await machine.must(
				'systemctl stop onramp && rm -r /var/lib/onramp/identity && systemctl daemon-reload && systemctl start onramp',
			);
			await machine.must('onramp status --wait 60s');
			t.not(await since(), before);
			const list = await machine.must('ls -ln /run/credentials/onramp-agent.service/istio-token');
			t.regex(list, /^-r-------- /, 'nobody else can read it');
		}
		await machine.must(
			`mv /root/token ${token}; rm -rf /etc/credstore /root/token.cred ${dropIn}; systemctl daemon-reload; rm -f /var/lib/systemd/credential.secret`,
		);
		await machine.must('systemctl restart onramp-agent');
		await untilReady(a);
		await untilActive(a, 'onramp-ready.target');
		await assertBothWays(t);
	},
);

step('the units hold what they promise: no capability, no root, an exposure of 1.5 at most', async t => {
	const list = readdirSync(join(import.meta.dirname, '../../packaging/units')).map(name => name.replace('@.', '@a.'));
	// Some have complaints of a distribution's own units.
	const complaints = await a.machine.must(
		`systemd-analyze verify --man=no ${list.join(' ')} 2>&1 | grep onramp || true`,
	);
	t.is(complaints, '');
	for (const unit of ['onramp-agent.service', 'onramp-envoy@a.service']) {
		const text = await a.machine.must(`systemd-analyze security --no-pager ${unit} | tail -1`);
		const exposure = Number(/: (\d+\.\d+)/.exec(text)?.[1]);
		t.true(exposure <= 1.5, `${unit}: ${text}`);
		t.log(text.trim());
		const status = await a.machine.must(`cat /proc/${await a.machine.show(unit, 'MainPID')}/status`);
		for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
			t.regex(status, new RegExp(`^${set}:\\s+0+$`, 'm'), `${unit} ${set}`);
		t.notRegex(status, /^Uid:\s+0/m);
	}
});

step('the agent hears of changed addresses from the kernel, also in its sandbox', async t => {
	await until('the listener', async () =>
		/^onramp +\S*ip monitor address route$/m.test(await a.machine.must('ps -eo user:20,args')),
	);
	t.pass();
});

step('a hostile local user gets no socket, no key, no token, no admin and no control', async t => {
	await assertRefused(t, a.machine, [await agentPid(a), await envoyPid(a)]);
	await assertPublicIsHarmless(t, a.machine);
	await assertNoSecretShows(t, a.machine);
	await assertNoAbstractSocket(t, a.machine);
	await assertBothWays(t);
});

step('the agent killed: it is back, and Envoy, rules and requests never notice', async t => {
	const [envoy, agent, rules] = [await envoyPid(a), await agentPid(a), await rulesOf(a)];
	await underLoad(t, {a, b}, async () => {
		await a.machine.must(`kill -9 ${agent}`);
		await until('another agent', async () => !['0', agent].includes(await agentPid(a)));
		await untilReady(a);
	});
	t.is(await envoyPid(a), envoy);
	t.is(await rulesOf(a), rules);
	await untilActive(a, 'onramp-ready.target');
});

step('an agent that hangs is ended by the watchdog and started anew', async t => {
	const dropIn = '/run/systemd/system/onramp-agent.service.d';
	await a.machine.must(`mkdir ${dropIn} && printf '[Service]\\nWatchdogSec=2s\\n' > ${dropIn}/quick.conf`);
	await a.machine.must('systemctl daemon-reload && systemctl restart onramp-agent');
	const agent = await agentPid(a);
	await a.machine.must(`kill -STOP ${agent}`);
	await until('another agent', async () => !['0', agent].includes(await agentPid(a)), 60_000);
	await untilReady(a);
	t.regex(await a.machine.must('journalctl -u onramp-agent -b'), /watchdog/i);
	await a.machine.must(`rm -r ${dropIn} && systemctl daemon-reload && systemctl restart onramp-agent`);
	await assertBothWays(t);
});

step('Envoy killed: systemd has it back in seconds, the agent and the rules stay', async t => {
	const [envoy, agent, rules] = [await envoyPid(a), await agentPid(a), await rulesOf(a)];
	await a.machine.must(`kill -9 ${envoy}`);
	const startedMs = performance.now();
	await until('another Envoy', async () => !['0', envoy].includes(await envoyPid(a)));
	await assertBothWays(t);
	t.log(`answers both ways ${Math.round(performance.now() - startedMs)} ms after`);
	const at = async (event: string) =>
		Number(await a.machine.show('onramp-envoy@a.service', `Active${event}TimestampMonotonic`)) / 1000;
	const awayMs = (await at('Enter')) - (await at('Exit'));
	t.log(`away for ${Math.round(awayMs)} ms by the times of systemd`);
	t.true(awayMs > 0 && awayMs <= 5000, `${awayMs} ms`);
	t.is(await agentPid(a), agent);
	t.is(await rulesOf(a), rules);
	await untilReady(a);
});

step('rules that somebody flushes are put back where the watch is switched on', async t => {
	const rules = await rulesOf(a);
	await a.machine.must('systemctl enable --now onramp-capture-watch');
	for (const listener of ['nft monitor', 'ip monitor address rule'])
		await until(listener, async () => (await a.machine.must('ps -eo args')).includes(`/${listener}\n`));
	await a.machine.must('nft flush ruleset');
	await until('the rules', async () => (await rulesOf(a)) === rules, 60_000);
	await assertBothWays(t);
	await a.machine.must('systemctl disable --now onramp-capture-watch');
	t.is(await rulesOf(a), rules, 'the end of the watch is not the end of the rules');
});

step('restart onramp changes the agent only, and loses no request', async t => {
	const [envoy, agent] = [await envoyPid(a), await agentPid(a)];
	await underLoad(t, {a, b}, async () => {
		await a.machine.must('systemctl restart onramp');
		await until('another agent', async () => !['0', agent].includes(await agentPid(a)));
		await untilReady(a);
	});
	t.is(await envoyPid(a), envoy);
	t.deepEqual(await entries(), ['a', 'b']);
});

step(
	'an Envoy that is not the wanted one any more, or has a new file, is replaced by its other unit, and no request is lost',
	async t => {
		// Connections that wait when listening sockets are closed are handed over only with this.
		await a.machine.must('sysctl -q -w net.ipv4.tcp_migrate_req=1');
		const [rules, first] = [await rulesOf(a), await envoyPid(a)];
		const untilOnly = async (name: 'a' | 'b', other: 'a' | 'b') => {
			const state = () => a.machine.show(`onramp-envoy@${other}.service`, 'ActiveState');
			await until(`Envoy ${other} to rest`, async () => (await state()) === 'inactive', 60_000);
			t.not(await envoyPid(a, name), '0');
		};
		// The old one has its own drain time, of 45 s; those that follow have this.
		await a.machine.must("printf 'proxy: {drain: 2s, replace-ceiling: 10s}\\n' >> /etc/onramp/onramp.yaml");
		await underLoad(t, {a, b}, async () => {
			await a.machine.must('systemctl restart onramp');
			await until('the other Envoy', async () => (await envoyPid(a, 'b')) !== '0');
			await untilOnly('b', 'a');
			t.regex(
				await a.machine.must('onramp proxy replace'),
				/serves; onramp-envoy@b.service serves its last connections/,
			);
			await untilOnly('a', 'b');
		});
		t.not(await envoyPid(a), first);
		t.is(await rulesOf(a), rules);
		await a.machine.must('onramp proxy replace');
		await untilOnly('b', 'a');
		await a.machine.reboot();
		await untilActive(a, 'onramp-ready.target');
		await assertBothWays(t);
		await untilOnly('b', 'a');
		await a.machine.must('onramp proxy replace');
		await untilOnly('a', 'b');
	},
);

step('an upgrade and the way back lose no request, and leave Envoy and rules alone', async t => {
	const newer = await buildPackages({version: '0.2.0', names: 'onramp'});
	const [envoy, rules] = [await envoyPid(a), await rulesOf(a)];
	await a.machine.must("echo '# edited' >> /etc/onramp/onramp.yaml");
	for (const [from, version] of [
		[newer, '0.2.0'],
		[packages, '0.1.0'],
	] as const) {
		const agent = await agentPid(a);
		const file = from.of('onramp');
		await a.machine.copy(join(from.directory, file), `/root/${file}`);
		await underLoad(t, {a, b}, async () => {
			await a.machine.must(`dpkg --force-unsafe-io --force-confold -i /root/${file}; rm /root/${file}`);
			await until('another agent', async () => !['0', agent].includes(await agentPid(a)));
			await untilReady(a);
		});
		t.regex(await a.machine.must('dpkg -s onramp'), new RegExp(`Version: ${version}`));
		t.is(await envoyPid(a), envoy, version);
		t.is(await rulesOf(a), rules, version);
	}
	t.regex(await a.machine.must('cat /etc/onramp/onramp.yaml'), /# edited/);
});

step(
	'a stop leaves the mesh, drains, takes the rules away and ends Envoy last; an upgrade then leaves it stopped',
	async t => {
		await a.machine.must('systemctl stop onramp');
		const said = await a.machine.must("journalctl -b -u 'onramp*' -o cat");
		const at = [
			'left the mesh; no request is in flight',
			'capture: removed',
			// Before version 250 systemd says what a unit is, and not its name.
			/Stopped (onramp-agent\.service|onramp agent)/g,
			/Stopped (onramp-envoy@a\.service|Envoy a of onramp)/g,
		];
		const places = at.map(line => [...said.matchAll(new RegExp(line, 'g'))].at(-1)?.index ?? -1);
		t.deepEqual(
			places,
			places.toSorted((one, other) => one - other),
			`the order of a stop:\n${said.slice(-3000)}`,
		);
		t.true(places[0]! > 0);
		const file = packages.of('onramp');
		await a.machine.copy(join(packages.directory, file), `/root/${file}`);
		await a.machine.must(`dpkg --force-unsafe-io --force-confold -i /root/${file}; rm /root/${file}`);
		for (const unit of ['onramp', 'onramp-agent', 'onramp-envoy@a', 'onramp-envoy@b', 'onramp-capture', 'onramp-leave'])
			t.is(await a.machine.show(`${unit}.service`, 'ActiveState'), 'inactive', unit);
		t.is((await rulesOf(a)).trim(), '');
		await until('its entry to go', async () => (await entries()).join() === 'b');
		await a.machine.must('systemctl start onramp');
		await untilActive(a, 'onramp-ready.target');
		await assertBothWays(t);
	},
);

step('after a reboot, and after a power cut, the machine is in the mesh again by itself', async t => {
	for (const how of ['reboot', 'crash'] as const) {
		await a.machine[how]();
		await untilActive(a, 'onramp-ready.target');
		t.is(await a.machine.show('onramp.service', 'ActiveState'), 'active', how);
		await assertBothWays(t);
		const chain = await a.machine.must('systemd-analyze critical-chain onramp-ready.target --no-pager');
		t.log(`${how}: ${/^onramp-ready.target @.*/m.exec(chain)} after the start of systemd`);
		if (how === 'reboot') t.regex(await a.machine.must("journalctl -b -1 -u 'onramp*' -o cat"), /left the mesh/);
	}
});

step('a unit that needs the mesh starts once it is there', async t => {
	await a.machine.must(
		`printf '[Unit]\\nRequires=onramp-ready.target\\nAfter=onramp-ready.target\\n[Service]\\nType=oneshot\\nExecStart=/usr/bin/curl -sSf -m 10 http://${vips.b}/\\n[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/app.service; systemctl enable app`,
	);
	await a.machine.reboot();
	await until('the end of the application', async () =>
		/(Finished|Failed)/.test(await a.machine.must('journalctl -b -u app')),
	);
	t.regex(await a.machine.must('journalctl -b -u app'), /"app":"b"/);
	await a.machine.must('systemctl disable app; rm /etc/systemd/system/app.service; systemctl daemon-reload');
});

step('removed, its rules and services are gone and the configuration stays; purged, nothing is left', async t => {
	t.like(await reach(), {out: {app: 'outside'}, in: {error: 'ECONNRESET'}, mesh: {app: 'b'}});
	await underLoads(t, [{from: a, host: address.far.ip, port: outsidePort}], async () => {
		await a.machine.must('dpkg -r onramp');
	});
	t.is((await rulesOf(a)).trim(), '');
	await until('its entry to go', async () => (await entries()).join() === 'b');
	t.deepEqual(await reach(), reachBefore, 'in the clear again');
	t.is((await a.machine.must('systemctl list-units --all --plain --no-legend "onramp*"')).trim(), '');
	await a.machine.must('test -e /etc/onramp/onramp.yaml -a -e /etc/onramp/bundle/cluster.env');
	await a.machine.must('dpkg -P onramp onramp-envoy; rm -r /root/bundle');
	t.deepEqual(differenceOf(before, await lookAround(a)), {more: [], less: []});
});

/** Who is registered. */
async function entries(): Promise<string[]> {
	const list = (await world.control('workloadEntries')) as readonly {readonly name: string}[];
	return list.map(({name}) => String(name).slice(0, 1)).toSorted();
}
