// What becomes of agent, Envoy and rules when units are stopped, fail and are healed, told in order on one machine.
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {type Echo, idOf} from '../support/captured-mesh.ts';
import {until} from '../support/mesh.ts';
import {missingForMachines} from './machine.ts';
import {shareScope} from './scope.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	type Packages,
	underLoad,
	untilAnswered,
	type Vm,
	vips,
} from './world.ts';

const {scope, step: shared} = shareScope(test);
let [a, b, packages] = [undefined, undefined, undefined] as unknown as [Vm, Vm, Packages];

function step(title: string, run: (t: ExecutionContext) => Promise<void>): void {
	shared(`units › ${title}`, async t => {
		const reason = await missingForMachines();
		if (reason === undefined) return run(t);
		t.log(`skipped: ${reason}`);
		t.pass();
	});
}

const units = {
	umbrella: 'onramp.service',
	agent: 'onramp-agent.service',
	envoy: 'onramp-envoy@a.service',
	capture: 'onramp-capture.service',
	ready: 'onramp-ready.target',
} as const;

type States = Readonly<Record<keyof typeof units, string>>;

const up: States = {umbrella: 'active', agent: 'active', envoy: 'active', capture: 'active', ready: 'active'};
const captureOff: States = {...up, capture: 'inactive', ready: 'inactive'};

async function states(): Promise<States> {
	const all = Object.entries(units).map(async ([part, unit]) => [part, await a.machine.show(unit, 'ActiveState')]);
	return Object.fromEntries(await Promise.all(all)) as States;
}

const rules = (): Promise<string> => a.machine.must('nft -s list ruleset');
const envoyPid = (): Promise<string> => a.machine.show(units.envoy, 'MainPID');
const agentPid = (): Promise<string> => a.machine.show(units.agent, 'MainPID');
const restarts = async (): Promise<number> => Number(await a.machine.show(units.agent, 'NRestarts'));
const failedUnits = (): Promise<string> => a.machine.must('systemctl --failed --plain --no-legend | cut -d" " -f1');

async function untilStates(wanted: States): Promise<void> {
	await until(`states ${JSON.stringify(wanted)}`, async () => {
		const seen = await states();
		if (JSON.stringify(seen) !== JSON.stringify(wanted)) throw new Error(`seen: ${JSON.stringify(seen)}`);
		return true;
	});
}

async function assertBothWays(t: ExecutionContext): Promise<void> {
	t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
}

/** All is as after a join. */
async function assertHealed(t: ExecutionContext): Promise<void> {
	await untilStates(up);
	await a.machine.must('onramp status --wait 60s');
	t.is(await failedUnits(), '');
	await assertBothWays(t);
}

const dropIns = '/run/systemd/system/onramp-agent.service.d';

/** Has the agent fail at each start from now on for as long as there is /run/broken. */
async function breakAgent(startLimit: number): Promise<void> {
	const text = [
		...['[Unit]', `StartLimitBurst=${startLimit}`, '[Service]', 'ExecStart='],
		"ExecStart=/bin/sh -c 'test ! -e /run/broken && exec /usr/bin/onramp run'",
	];
	await writeFile(a.machine.path('/root/broken.conf'), `${text.join('\n')}\n`);
	await a.machine.must(
		`mkdir -p ${dropIns}; mv /root/broken.conf ${dropIns}/; systemctl daemon-reload; touch /run/broken`,
	);
}

/** Not by a reload, after which systemd has forgotten how often it has tried. */
const mendAgent = (): Promise<string> => a.machine.must('rm /run/broken');

step(
	'the rules stopped alone: traffic goes past Envoy, agent and Envoy stay; a start of any brings them back',
	async t => {
		packages = await buildPackages();
		// Callers are to know a machine whose agent is away for longer than a test of it takes.
		const world = await makeBootedWorld(scope, 120);
		[a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
		for (const vm of [a, b]) {
			await install(vm, packages);
			await joinMesh(vm);
		}
		await assertHealed(t);
		const planned = await rules();
		for (const way of ['systemctl start onramp-capture', 'systemctl start onramp', 'systemctl restart onramp']) {
			const [agent, envoy] = [await agentPid(), await envoyPid()];
			await a.machine.must('systemctl stop onramp-capture');
			t.deepEqual(await states(), captureOff);
			t.is(await rules(), '');
			t.is(await agentPid(), agent);
			const past = await a.app.send<Echo>('get', {url: `http://${vips.b}/`, withinMs: 3000});
			t.is(past.error, 'ENETUNREACH', 'only Envoy knows where that is');
			t.regex(
				(await a.machine.sh('onramp doctor')).stdout,
				/onramp-capture.service is inactive.*\n.*systemctl start onramp-capture/,
			);
			await a.machine.must(way);
			await untilStates(up);
			t.is(await rules(), planned, way);
			t.is(await envoyPid(), envoy, way);
		}
		await assertHealed(t);
	},
);

step('an agent that always fails is given up, clearly; Envoy, rules, target and all requests go on', async t => {
	const [envoy, planned] = [await envoyPid(), await rules()];
	await breakAgent(4);
	await underLoad(t, {a, b}, async () => {
		await a.machine.must(`kill -9 ${await agentPid()}`);
		await untilStates({...up, agent: 'failed'});
		t.is(await envoyPid(), envoy);
		t.is(await rules(), planned);
		t.is((await failedUnits()).trim(), units.agent);
		const tried = await restarts();
		t.true(tried > 0 && tried <= 5, `${tried} restarts`);
		const {code, stdout} = await a.machine.sh('onramp doctor');
		t.is(code, 1);
		t.regex(
			stdout,
			/onramp-agent.service is failed \(failed\): exit-code; it is not started again by itself\n.*journalctl -u onramp-agent.*systemctl restart onramp$/m,
		);
		t.is(stdout.match(/^fail /gm)?.length, 1, `nothing else is wrong, least of all the ports of Envoy:\n${stdout}`);
		t.is((await a.machine.sh('onramp status')).code, 2);
		t.is(await restarts(), tried, 'no endless loop');
	});
	await mendAgent();
	// Without resetting what systemd has counted this would do nothing for minutes, and say so to nobody.
	await a.machine.must('systemctl restart onramp');
	await assertHealed(t);
	t.is(await envoyPid(), envoy);
	t.is(await rules(), planned);
});

step('a stop of onramp whose agent has failed takes the rules away and ends Envoy', async t => {
	await breakAgent(4);
	await a.machine.must(`kill -9 ${await agentPid()}`);
	await untilStates({...up, agent: 'failed'});
	await a.machine.must('systemctl stop onramp');
	t.deepEqual(await states(), {...captureOff, umbrella: 'inactive', agent: 'failed', envoy: 'inactive'});
	t.is(await rules(), '');
	const said = await a.machine.must("journalctl -b -u 'onramp*' -o cat");
	// Before version 250 systemd says what a unit is, and not its name.
	const [off, ended] = [/capture: removed/g, /Stopped (onramp-envoy@a\.service|Envoy a of onramp)/g].map(
		line => [...said.matchAll(line)].at(-1)?.index ?? -1,
	);
	t.true(off! > 0 && off! < ended!, 'in this order');
});

step('with an agent that fails at start there are no rules and no target; they come when it is healed', async t => {
	await breakAgent(1000);
	await a.machine.must('systemctl start onramp');
	await until('some starts', async () => (await restarts()) > 3);
	t.is(await rules(), '');
	t.not((await states()).ready, 'active');
	await mendAgent();
	await assertHealed(t);
	t.not(await rules(), '');
});

step(
	'an agent that never gets ready: the rules fail, the target is not reached, and a restart later mends all',
	async t => {
		await a.machine.must("systemctl stop onramp; printf 'capture: {wait: 2s}\\n' >> /etc/onramp/onramp.yaml");
		await breakAgent(4);
		await a.machine.must('systemctl start onramp');
		await untilStates({...captureOff, agent: 'failed', capture: 'failed'});
		t.is(await rules(), '');
		t.is((await failedUnits()).trim(), `${units.agent}\n${units.capture}`);
		await mendAgent();
		await a.machine.must("sed -i '/^capture:/d' /etc/onramp/onramp.yaml; systemctl restart onramp");
		await assertHealed(t);
		t.not(await rules(), '');
	},
);

step('an upgrade starts an agent that has failed, as it may be what mends it', async t => {
	const [envoy, planned] = [await envoyPid(), await rules()];
	await breakAgent(4);
	await a.machine.must(`kill -9 ${await agentPid()}`);
	await untilStates({...up, agent: 'failed'});
	await mendAgent();
	await reinstall();
	await assertHealed(t);
	t.is(await envoyPid(), envoy);
	t.is(await rules(), planned);
	await a.machine.must(`rm -r ${dropIns}; systemctl daemon-reload`);
});

step('the agent stopped alone: Envoy, rules and target stay, and requests go on', async t => {
	const [envoy, planned] = [await envoyPid(), await rules()];
	await underLoad(t, {a, b}, async () => {
		await a.machine.must('systemctl stop onramp-agent');
		t.deepEqual(await states(), {...up, agent: 'inactive'});
		await assertBothWays(t);
	});
	t.is(await envoyPid(), envoy);
	t.is(await rules(), planned);
	await a.machine.must('systemctl start onramp');
	await assertHealed(t);
	t.is(await envoyPid(), envoy);
});

async function reinstall(): Promise<void> {
	const file = packages.of('onramp');
	await a.machine.copy(join(packages.directory, file), `/root/${file}`);
	await a.machine.must(`dpkg --force-unsafe-io --force-confold -i /root/${file}; rm /root/${file}`);
}

step('the same package again: another agent, and Envoy, rules and what is enabled stay', async t => {
	for (const state of ['enabled', 'disabled'] as const) {
		const [agent, envoy, planned] = [await agentPid(), await envoyPid(), await rules()];
		if (state === 'disabled') await a.machine.must('systemctl disable onramp');
		await underLoad(t, {a, b}, async () => {
			await reinstall();
			await until('another agent', async () => !['0', agent].includes(await agentPid()));
			await a.machine.must('onramp status --wait 60s');
		});
		t.is(await a.machine.show(units.umbrella, 'UnitFileState'), state);
		t.is(await envoyPid(), envoy);
		t.is(await rules(), planned);
		await assertHealed(t);
	}
	await a.machine.must('systemctl enable onramp');
});

interface Entry {
	readonly MESSAGE: string;
	readonly PRIORITY: string;
	readonly SYSLOG_IDENTIFIER: string;
	readonly ONRAMP_PART?: string;
}

async function journal(match: string): Promise<readonly Entry[]> {
	const lines = (await a.machine.must(`journalctl -b -o json ${match}`)).trim().split('\n');
	return lines.filter(line => line !== '').map(line => JSON.parse(line) as Entry);
}

step('the journal has a name, a priority and a field for each part', async t => {
	// Envoy writes to a file of its own; what comes before it is what the journal gets.
	const dropIn = '/run/systemd/system/onramp-envoy@.service.d';
	await a.machine.must(
		`mkdir ${dropIn}; printf '[Service]\\nExecStartPre=/bin/echo here\\n' > ${dropIn}/say.conf; systemctl daemon-reload; kill -9 ${await envoyPid()}`,
	);
	const find = (identifier: string, text: string) =>
		until(`"${text}" of ${identifier}`, async () =>
			(await journal(`-t ${identifier}`)).find(({MESSAGE}) => MESSAGE.includes(text)),
		);
	t.like(await find('onramp-envoy', 'here'), {PRIORITY: '6', ONRAMP_PART: 'envoy'});
	t.like(await find('onramp-agent', 'envoy has ended'), {PRIORITY: '3', ONRAMP_PART: 'agent'});
	await a.machine.must(
		`rm -r ${dropIn}; systemctl daemon-reload; echo 'nonsense: 1' >> /etc/onramp/onramp.yaml; systemctl restart onramp`,
	);
	t.like(await find('onramp-agent', 'unknown setting "nonsense"'), {PRIORITY: '3', ONRAMP_PART: 'agent'});
	await untilStates({...up, agent: 'failed'});
	const file = '/etc/onramp/bundle/cluster.env';
	await a.machine.must(
		`sed -i '/^nonsense/d' /etc/onramp/onramp.yaml; cp -p ${file} /root/; sed '$!d' /root/cluster.env >> ${file}; systemctl restart onramp`,
	);
	t.like(await find('onramp-agent', 'is set again'), {PRIORITY: '4', ONRAMP_PART: 'agent'});
	await a.machine.must(`mv /root/cluster.env ${file}`);
	t.like(await find('onramp-capture', 'capture: applied'), {PRIORITY: '6', ONRAMP_PART: 'capture'});
	t.like(await find('onramp-leave', 'left the mesh'), {ONRAMP_PART: 'leave'});
	t.deepEqual(
		(await journal('-t onramp-agent')).filter(({MESSAGE}) => MESSAGE.includes('could not be notified')),
		[],
	);
	await assertHealed(t);
});

step('systemd has the units as they are meant', async t => {
	const network = ['network.target', 'network-online.target', 'nss-lookup.target', 'time-sync.target'];
	const firewalls = ['nftables', 'netfilter-persistent', 'firewalld', 'ufw'].map(name => `${name}.service`);
	const after: Readonly<Record<string, readonly string[]>> = {
		[units.agent]: [...network, 'systemd-resolved.service', units.umbrella, units.envoy],
		[units.envoy]: ['network.target', units.umbrella],
		[units.capture]: [...firewalls, units.umbrella, units.agent, units.envoy],
		[units.ready]: [units.agent, units.capture],
		'onramp-leave.service': [units.agent, units.envoy, units.capture],
	};
	for (const [unit, wanted] of Object.entries(after)) {
		const seen = (await a.machine.show(unit, 'After')).split(' ');
		t.deepEqual(
			wanted.filter(name => !seen.includes(name)),
			[],
			`${unit} is ordered after all of these`,
		);
	}
	t.regex(await a.machine.show(units.agent, 'Wants'), /network-online\.target/, 'or being after it means nothing');
	const properties: Readonly<Record<string, Readonly<Record<string, string>>>> = {
		[units.agent]: {
			...{Type: 'notify', WatchdogUSec: '30s', LimitNOFILE: '65536', Restart: 'always', RestartUSec: '1s'},
			...{StartLimitIntervalUSec: '10min', StartLimitBurst: '60', KillMode: 'mixed'},
			...{SyslogIdentifier: 'onramp-agent', RestartPreventExitStatus: '78'},
		},
		[units.envoy]: {
			...{LimitNOFILE: '1048576', Restart: 'always', RestartUSec: '100ms', StartLimitIntervalUSec: '0'},
			SyslogIdentifier: 'onramp-envoy',
		},
		[units.capture]: {Type: 'oneshot', RemainAfterExit: 'yes', SyslogIdentifier: 'onramp-capture'},
	};
	for (const [unit, wanted] of Object.entries(properties))
		for (const [name, value] of Object.entries(wanted))
			t.is(await a.machine.show(unit, name), value, `${unit} ${name}`);
});

step('rules of a firewall that flushes all others when it starts late are there beside ours after a boot', async t => {
	// Debian's own comes before all networks; this one is as late as it can be.
	const service = [
		...['[Service]', 'Type=oneshot', 'RemainAfterExit=yes'],
		`ExecStartPre=/bin/sh -c 'until systemctl -q is-active ${units.agent}; do sleep 0.1; done; sleep 2'`,
		...['ExecStart=/usr/sbin/nft -f /etc/nftables.conf', '[Install]', 'WantedBy=multi-user.target'],
	];
	await writeFile(a.machine.path('/etc/systemd/system/nftables.service'), `${service.join('\n')}\n`);
	await a.machine.must('grep -q "^flush ruleset$" /etc/nftables.conf && systemctl enable nftables');
	await a.machine.reboot();
	await untilStates(up);
	const at = async (unit: string) => Number(await a.machine.show(unit, 'ActiveEnterTimestampMonotonic'));
	t.true((await at(units.capture)) > (await at('nftables.service')), 'in that order, or for a moment ours are gone');
	const both = await rules();
	t.regex(both, /table inet filter \{/);
	t.regex(both, /table ip onramp \{/);
	await assertHealed(t);
});
