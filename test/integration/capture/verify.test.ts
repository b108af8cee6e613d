import test from 'ava';
import {until} from '../../support/mesh.ts';
import {makeWorld, meshUid, skippedWithout} from '../../support/netns.ts';

test.serial('verify › a real packet tells that Envoy is gone although every rule is as planned', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const envoy = await world.startEnvoy();
	t.is((await world.capture(['apply'])).code, 0);
	const good = await world.capture(['verify']);
	t.is(good.code, 0, good.stdout);
	for (const name of ['IPv4', 'IPv6']) t.regex(good.stdout, new RegExp(`${name}: a packet to \\S+ reached Envoy`));

	// Whom the rules exempt cannot send such a packet, and says so.
	const asMesh = (args: readonly string[]) =>
		world.vm.run('setpriv', [
			...['--reuid', String(meshUid), '--regid', String(meshUid), '--clear-groups'],
			...['--inh-caps', '+net_admin', '--ambient-caps', '+net_admin', ...world.captureCommand(args)],
		]);
	const unsent = await asMesh(['verify']);
	t.is(unsent.code, 0, unsent.stderr);
	for (const name of ['IPv4', 'IPv6'])
		t.regex(unsent.stdout, new RegExp(`${name}: NOT checked whether packets reach Envoy.*\\(uid ${meshUid}\\)`));
	t.notRegex(unsent.stdout, /reached Envoy/);
	const {packets} = JSON.parse((await asMesh(['verify', '--json'])).stdout) as {packets: {isSent: boolean}[]};
	t.deepEqual(
		packets.map(({isSent}) => isSent),
		[false, false],
	);

	envoy.kill('SIGKILL');
	await until('Envoy to be dead', () => envoy.exitCode !== null || envoy.signalCode !== null);
	const bad = await world.capture(['verify']);
	t.is(bad.code, 1);
	t.regex(bad.stdout, /problem: IPv4: a packet to 192\.0\.2\.1 did not reach Envoy at port 15001/);
	t.notRegex(bad.stdout, /nat_output|another plan|in front/, 'nothing is wrong with the rules');
});
