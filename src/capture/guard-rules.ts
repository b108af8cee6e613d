import type {CaptureConfig} from '../config/index.ts';
import type {PlanContext} from './context.ts';
import {type Add, portGroups, returns} from './passes.ts';
import type {Chain, Match, Verdict} from './rules.ts';

/** Connections that begin from now on leave no entry that a later one could be counted to. */
export function addForgetting(add: Add, chain: Chain): void {
	add(
		chain,
		'guard.forget',
		{protocol: 'tcp', state: ['new']},
		{kind: 'forget-soon'},
		'a later connection between the same ports must not be taken for this one',
	);
}

/** The other way round: a connection of Envoy's that is counted to an old one of the application's is led to Envoy itself. */
export function addLoopRefusal(add: Add, {owners}: PlanContext, {outboundPort}: CaptureConfig, verdict: Verdict): void {
	for (const owner of owners)
		add(
			'filter_output',
			'guard.loop',
			{protocol: 'tcp', ...owner, isSyn: true, isRewritten: true, destinationPort: {is: [outboundPort]}},
			verdict,
			'a connection of Envoy that would come back to it',
		);
}

/**
 * What the guard does with packets that begin nothing: they follow its rule for first packets, so whatever comes this
 * far belongs to a connection that was never redirected, or to none that is known.
 * @param match - further conditions under which capture would take the connection
 */
export function addStrayRules(add: Add, chain: Chain, id: string, match: Match, config: CaptureConfig): void {
	// nat rules do not look at these at all, so bytes of a captured connection would leave as they are.
	add(
		chain,
		`${id}-untracked`,
		{protocol: 'tcp', isNoReset: true, state: ['invalid', 'untracked'], ...match},
		{kind: 'drop'},
		'belongs to no connection that is known, and is not redirected',
	);
	if (config.existingConnections === 'end')
		add(
			chain,
			`${id}-older`,
			// The last packets of a closed connection have no owner; Envoy's would be taken for the application's.
			{protocol: 'tcp', isNoReset: true, isOwned: true, isOriginal: true, ...match},
			{kind: 'reject'},
			'from before the rules, or no longer known to connection tracking: ended, as the settings say',
		);
}

/**
 * What the guard lets pass early. Where older connections are left, that is every later packet of a known connection.
 * When the kernel did not track connections before, or has forgotten them, the side that speaks next counts as the one
 * that began: a session of SSH must not be ended as if it went out from here.
 */
export function addSpared(add: Add, {neverCaptured}: PlanContext, config: CaptureConfig): void {
	if (config.existingConnections === 'leave') {
		add(
			'filter_output',
			'guard.later',
			{protocol: 'tcp', isSyn: false, state: ['established', 'related']},
			returns,
			'of a connection that a first packet has begun',
		);
		return;
	}
	for (const ports of portGroups(neverCaptured.map(({port}) => port)))
		add(
			'filter_output',
			'guard.answer',
			{protocol: 'tcp', sourcePort: ports},
			returns,
			'answers of SSH and of ports that are never captured',
		);
}
