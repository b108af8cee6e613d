import test from 'ava';
import {agentsFailure} from '../../../src/cli/doctor/endpoints.ts';
import {tcp} from '../../../src/cli/doctor/tcp.ts';
import {tls} from '../../../src/cli/doctor/tls.ts';
import type {Patient} from '../../../src/cli/doctor/types.ts';
import type {LoadedConfig} from '../../../src/config/index.ts';
import type {StatusReport} from '../../../src/status/index.ts';

function patientWith(isCaptured: boolean, upstream: object): Patient {
	const gates = [{name: 'capture', open: isCaptured, reason: '', since: new Date(0)}];
	return {
		loaded: {config: {controlPlane: {endpoints: [], caEndpoints: []}}} as unknown as LoadedConfig,
		problems: [],
		report: {gates, parts: {relay: {upstream}}} as unknown as StatusReport,
		unreachable: undefined,
		controlSocketPath: '',
		now: new Date(0),
		timeoutMs: 100,
	};
}

const lastError = {message: 'connect to istiod:15012: ECONNREFUSED', hint: 'is it up?'};

test('doctor › where rules lead a look of ours through Envoy, a connection that the agent has not is its own to tell', async t => {
	const patient = patientWith(true, {state: 'waiting', lastError});
	t.deepEqual(await tcp.run(patient), [
		{verdict: 'fail', message: `the agent has none: ${lastError.message}`, remedy: lastError.hint},
	]);
	const [finding] = await tls.run(patient);
	t.is(finding?.verdict, 'skip');
	t.regex(finding?.message ?? '', /through Envoy/);
});

test('doctor › one that it has, or where there are no rules, is looked at from here', t => {
	t.is(agentsFailure(patientWith(true, {state: 'connected', lastError})), undefined);
	t.is(agentsFailure(patientWith(false, {state: 'waiting', lastError})), undefined);
	t.is(agentsFailure({report: undefined}), undefined);
});
