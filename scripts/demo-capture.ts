// The part of the demo that needs root: two machines whose traffic the kernel leads through their Envoys.
import type {ChildProcess} from 'node:child_process';
import type {Echo} from '../src/sandbox/echo-app.ts';
import {check, retry, step} from './demo-steps.ts';
import {agentUid, callerUid, controlPlane, type Machine, Machines, toolPath} from './machines.ts';

export async function showCapture(
	directory: string,
	envoyPath: string,
	cleanUps: (() => Promise<unknown>)[],
): Promise<void> {
	const machines = new Machines(directory, envoyPath);
	const {cluster, vm, all} = machines;
	const agents = new Map<Machine, ChildProcess>();
	const before = new Map<Machine, string>();
	cleanUps.push(async () => machines.destroy());
	const curl = (caller: Machine, {host}: Machine) =>
		machines.as(callerUid, caller, [
			...[toolPath('curl')!, '--silent', '--show-error', '--fail', '--max-time', '5', `http://${host}/`],
		]);

	await step('two machines and a network', async () => {
		await machines.make();
		for (const each of all) {
			before.set(each, await machines.rulesOf(each));
			machines.startApp(each);
		}
		const named = all.map(({name, address}) => `${name} ${address}`);
		return {value: undefined, result: `network namespaces ${named.join(', ')}`};
	});
	await step('control plane beside them', async () => {
		await machines.startControlPlane();
		return {value: undefined, result: `${controlPlane}:15012, STRICT mutual TLS`};
	});
	for (const each of all)
		await step(`join with capture: ${each.name}`, async () => {
			const {agent, report} = await machines.join(each);
			agents.set(each, agent);
			const {reason} = report.gates.find(({name}) => name === 'capture')!;
			return {value: undefined, result: `uid ${agentUid} with CAP_NET_ADMIN alone; ${reason}`};
		});

	const pairs = [
		[vm, cluster],
		[cluster, vm],
	] as const;
	const seen: string[] = [];
	for (const [caller, called] of pairs)
		await step(`curl on the ${caller.name}`, async () => {
			// The endpoint reaches the caller with the push that follows the registration.
			const echo = await retry(async () => JSON.parse((await curl(caller, called)).stdout) as Echo, 10_000);
			const {app, callerId, ownId} = echo;
			check(callerId === caller.id, `the application saw ${callerId || 'no identity'}, expected ${caller.id}`);
			check(ownId === called.id, `it was received as ${ownId || 'no identity'}, expected ${called.id}`);
			seen.push(`"${app}" saw ${caller.name}-sa`);
			const result = `http://${called.host}/, no proxy setting: "${app}" saw ${callerId}, received as ${ownId}`;
			return {value: undefined, result};
		});
	await step('rules on the VM', async () => {
		const {stdout} = await machines.onramp(vm, 'capture', 'verify');
		return {value: undefined, result: stdout.trim().replaceAll(/\n\s*/g, '; ').replace('capture: ', '')};
	});

	const after: string[] = [];
	await step('onramp capture remove on both', async () => {
		for (const each of all) {
			const {code, stderr} = await machines.onramp(each, 'capture', 'remove');
			check(code === 0, stderr);
			check((await machines.rulesOf(each)) === before.get(each), `the rules of the ${each.name} are not as they were`);
		}
		for (const [caller, called] of pairs) {
			const {code, stderr} = await curl(caller, called);
			check(code !== 0, `curl on the ${caller.name} still gets an answer`);
			after.push(stderr.trim().replace(/^curl: /, ''));
		}
		return {value: undefined, result: 'rule sets of both machines as before, byte for byte'};
	});
	for (const [i, [caller]] of pairs.entries())
		await step(`with and without: ${caller.name}`, async () => ({
			value: undefined,
			result: `captured: ${seen[i]!.padEnd(32)} | removed: ${after[i]}`,
		}));

	await step('captured again, then stopped', async () => {
		for (const each of all) {
			// It does not put back what a person has taken away, until it is asked to.
			await retry(async () => check(!(await machines.status(each)).ready, 'still green'), 30_000);
			await machines.command(each, 'retry');
			await machines.untilReady(each);
			check((await machines.rulesOf(each)) !== before.get(each), 'no rules were put in');
			const agent = agents.get(each)!;
			const ended = new Promise(resolve => agent.once('exit', resolve));
			agent.kill('SIGTERM');
			check((await ended) === 0, `the agent of the ${each.name} did not end in order`);
			check((await machines.rulesOf(each)) === before.get(each), `the agent of the ${each.name} left rules behind`);
		}
		return {value: undefined, result: 'each agent took its rules away before its Envoy ended'};
	});
}
