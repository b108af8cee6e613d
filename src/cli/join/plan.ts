import {AgentError} from '../../errors.ts';

/** The agent that answers on the control socket. */
export interface RunningAgent {
	readonly pid: number;
	/** The unit it runs in; undefined when somebody runs it by hand. */
	readonly unit: string | undefined;
	/** The bundle directory it was started with; undefined when its report does not say. */
	readonly bundle: string | undefined;
	/** Files that it read at its start and that will be different from then. */
	readonly outdated: readonly string[];
}

export interface Situation {
	readonly target: string;
	readonly agent: RunningAgent | undefined;
	readonly hasService: boolean;
	readonly isInstallOnly: boolean;
}

/**
 * - `keep`: the files are put in place, and that is all
 * - `wake`: the agent has all it reads at its start, and looks at the rest by itself
 * - `restart`: the unit of the running agent is started anew
 * - `start`: the service is enabled and started
 * - `foreground`: this process becomes the agent
 */
export type Plan =
	| {readonly kind: 'keep' | 'wake' | 'start' | 'foreground'}
	| {readonly kind: 'restart'; readonly unit: string; readonly because: readonly string[]};

/**
 * What joining takes here. Pure.
 * @throws AgentError `cli.agent_differs` when an agent is in the way that only a person can end; nothing is changed then
 */
export function planJoin({target, agent, hasService, isInstallOnly}: Situation): Plan {
	if (isInstallOnly) return {kind: 'keep'};
	if (!agent) return {kind: hasService ? 'start' : 'foreground'};
	const {pid, unit, bundle, outdated} = agent;
	if (outdated.length === 0 && (bundle === target || bundle === undefined)) return {kind: 'wake'};
	if (unit !== undefined) return {kind: 'restart', unit, because: outdated};
	const why =
		bundle === target || bundle === undefined
			? `only a start reads ${outdated.join(', ')}`
			: `it reads the bundle in ${bundle}, not ${target}`;
	throw new AgentError(
		'cli.agent_differs',
		`an agent runs by hand here (pid ${pid}), and ${why}; nothing was changed`,
		{
			hint: `end it (kill ${pid}) and join again, or keep the bundle for its next start with --install-only`,
		},
	);
}
