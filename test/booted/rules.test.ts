import test from 'ava';
import {idOf} from '../support/captured-mesh.ts';
import {until} from '../support/mesh.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
} from './world.ts';

const nft = '/usr/sbin/nft';

test.serial(
	'package › rules that do not load are a failed capture and a red readiness, until they do; those that others flush are put back',
	async t => {
		if (await skippedWithoutMachines(t)) return;
		const packages = await buildPackages();
		const world = await makeBootedWorld(t);
		const [a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
		const {machine} = a;
		await Promise.all([install(a, packages), install(b, packages)]);
		const readiness = async () => machine.must("curl -s -m 5 -w ' %{http_code}' http://127.0.0.1:15020/healthz/ready");
		const agent = () => machine.show('onramp-agent.service', 'MainPID');
		const state = (unit: string) => machine.show(unit, 'ActiveState');
		const untilSaid = (what: RegExp) => until(`${what}`, async () => what.test(await readiness()), 30_000);

		// A kernel that refuses: the tool looks, and fails to load. There is no other way on this machine.
		await machine.must(
			`mv ${nft} ${nft}.real; for name in /usr/sbin/*tables-*-restore; do mv $name $name.away; done 2>/dev/null; printf '#!/bin/sh\\nfor word; do if [ "$word" = -f ]; then echo "Error: Could not process rule: No such file or directory" >&2; exit 1; fi; done\\nexec ${nft}.real "$@"\\n' > ${nft}; chmod 0755 ${nft}`,
		);
		await joinMesh(b);
		await machine.copy(a.bundle, '/root/bundle');
		const {code, stdout} = await machine.sh(
			'onramp join /root/bundle --wait 60s --proxy-termination-drain 2s --health-mode always',
		);
		t.not(code, 0, stdout);
		t.regex(stdout, /the rules of traffic capture could not be put in/);
		t.regex(stdout, /^ +capture: not in, all traffic goes past Envoy: .*Could not process rule/m);
		t.is(await state('onramp-capture.service'), 'failed');
		t.is(await state('onramp-ready.target'), 'inactive');
		t.is(await state('onramp-agent.service'), 'active', 'it goes on, and what waits for it is tried');
		t.regex(await readiness(), /capture: not in[\s\S]* 503$/);
		t.regex((await machine.sh('onramp status')).stdout, /NOT READY[\s\S]*capture +not in, all traffic goes past Envoy/);
		t.regex((await machine.sh('onramp doctor')).stdout, /onramp-capture\.service is failed/);

		const health = async () => JSON.parse((await machine.sh('onramp status --json')).stdout).parts.health;
		await until('it is kept out of load balancing', async () => (await health()).told?.state === 'unhealthy');
		t.regex((await health()).reason, /all traffic goes past Envoy/);

		const former = await agent();
		await machine.must('systemctl kill -s KILL onramp-agent');
		await until('another agent', async () => !['0', former].includes(await agent()));
		await until('the next try', async () => (await state('onramp-agent.service')) === 'active');
		await untilSaid(/capture: not in[\s\S]* 503$/);

		await machine.must(`mv ${nft}.real ${nft}`);
		await machine.must('systemctl restart onramp-capture');
		await untilSaid(/ 200$/);
		await untilActive(a, 'onramp-ready.target');
		t.is((await health()).told.state, 'healthy');
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});

		await machine.must('onramp capture remove');
		await untilSaid(/the rules were taken away[\s\S]* 503$/);
		await machine.must('systemctl restart onramp-capture');
		await untilSaid(/ 200$/);
		t.regex((await machine.sh('onramp status')).stdout, /\[ok\] capture +\d+ rules with nft/);

		// Nobody has switched anything on for this.
		const rules = await machine.must('nft -s list ruleset');
		await until('the listener', async () => (await machine.must('ps -eo args')).includes('nft monitor\n'));
		await machine.must('nft flush ruleset');
		const flushedMs = performance.now();
		await until('the rules', async () => (await machine.must('nft -s list ruleset')) === rules, 30_000);
		t.log(`flushed rules are back after ${Math.round(performance.now() - flushedMs)} ms`);
		t.regex(await machine.must('journalctl -b -u onramp-capture-drift -o cat'), /not as planned[\s\S]*repaired/);
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
		const group = await machine.must(
			'systemctl show -p MemoryCurrent --value onramp-capture-drift; systemd-analyze security --no-pager onramp-capture-drift.service | tail -1',
		);
		t.log(`what looks after them: ${group.trim().replace('\n', ' bytes; ')}`);
		await machine.must('systemctl stop onramp');
		t.is((await machine.must('nft list ruleset')).trim(), '');
		t.is(await state('onramp-capture-drift.service'), 'inactive');
	},
);
