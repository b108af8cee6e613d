import test from 'ava';
import {planJoin, type RunningAgent, type Situation} from '../../../src/cli/join/plan.ts';
import {AgentError, exitCodeOf} from '../../../src/errors.ts';

const target = '/etc/onramp/bundle';
const byHand: RunningAgent = {pid: 7, unit: undefined, bundle: target, outdated: []};
const inUnit: RunningAgent = {...byHand, unit: 'onramp-agent.service'};
const outdated = [`${target}/cluster.env`];

const plan = (situation: Partial<Situation>) =>
	planJoin({target, agent: undefined, hasService: false, isInstallOnly: false, ...situation});

test('join plan › without an agent, a service is started, and where there is none this process is the agent', t => {
	t.deepEqual(plan({hasService: true}), {kind: 'start'});
	t.deepEqual(plan({}), {kind: 'foreground'});
});

test('join plan › an agent that has all that only a start reads is woken, in a unit or by hand', t => {
	t.deepEqual(plan({agent: byHand}), {kind: 'wake'});
	t.deepEqual(plan({agent: inUnit, hasService: true}), {kind: 'wake'});
});

test('join plan › an outdated agent in a unit is restarted in that unit', t => {
	t.deepEqual(plan({agent: {...inUnit, outdated}}), {kind: 'restart', unit: 'onramp-agent.service', because: outdated});
});

test('join plan › an agent in a unit with another bundle is restarted', t => {
	t.like(plan({agent: {...inUnit, bundle: '/elsewhere'}}), {kind: 'restart'});
});

for (const [title, agent, why] of [
	['that is outdated', {...byHand, outdated}, /pid 7\), and only a start reads \/etc\/onramp\/bundle\/cluster\.env/],
	['with another bundle', {...byHand, bundle: '/else'}, /it reads the bundle in \/else, not \/etc\/onramp\/bundle/],
] as const) {
	test(`join plan › an agent by hand ${title} is in the way, which only a person can end`, t => {
		const error = t.throws<AgentError>(() => plan({agent, hasService: true}), {instanceOf: AgentError, message: why});
		t.is(error.code, 'cli.agent_differs');
		t.is(exitCodeOf(error), 78);
		t.deepEqual(plan({agent, isInstallOnly: true}), {kind: 'keep'});
	});
}
